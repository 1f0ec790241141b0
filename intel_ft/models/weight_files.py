"""Which files of a model folder are its weights, and what makes them unusable.

Transformers loads `model.safetensors`, or else the shards that `model.safetensors.index.json`
names. Any other safetensors file beside them (such as Mistral's `consolidated.safetensors`) is a
copy in another layout, which is neither loaded nor counted.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from intel_ft.errors import UserError
from intel_ft.plurals import count_of

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
FP16_MAX = 65504.0


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the model in `folder`; empty if it has none.

    Raises UserError if a shard is missing, if it lacks a tensor that the index promises, if there
    are both one file and shards, or if the only files are in a layout that Transformers cannot
    load.
    """
    single, index = folder / SINGLE, folder / INDEX
    if not index.is_file():
        others = sorted(folder.glob("*.safetensors"))
        if single.is_file() or not others:
            return [single] if single.is_file() else []
        raise UserError(
            f"{folder}: {others[0].name} is not a file that Transformers loads; it expects"
            f" {SINGLE}, or shards with {INDEX}: use the model's files in that layout"
        )
    shards = _shards(index)
    if single.is_file() and SINGLE not in shards:
        raise UserError(
            f"{folder}: it has both {SINGLE} and the shards of {INDEX}, which may be different "
            f"models: delete {SINGLE}, or the index and its shards"
        )
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder}: of the files in {INDEX}, {len(missing)} of {len(shards)} are missing: "
            f"{missing[0]}: copy or download the model again"
        )
    for name, tensors in shards.items():
        with open_safetensors(folder / name) as file:
            if lacking := tensors - set(file.keys()):
                raise UserError(
                    f"{folder / name}: lacks {count_of(len(lacking), 'tensor')} of {INDEX}, such "
                    "as "
                    f"{min(lacking)}: copy or download the model again"
                )
    return [folder / name for name in sorted(shards)]


def _shards(index: Path) -> dict[str, set[str]]:
    """The tensors of each file that the index names."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards: dict[str, set[str]] = {}
        for tensor, name in places.items():
            shards.setdefault(name, set()).add(tensor)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index}: not an index of weights ({error}): copy it again") from None
    return shards


def open_safetensors(path: Path, framework: str = "np") -> Any:
    """An open safetensors file, whose header is checked to cover the file exactly.

    With "pt" torch maps the whole file, which fails for one that is larger than memory.
    """
    try:
        return safe_open(path, framework=framework)
    except (SafetensorError, OSError) as error:
        refuse_lfs_pointer(path)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path}: damaged or not a safetensors file ({reason}): copy it again"
        ) from None


def refuse_lfs_pointer(path: Path) -> None:
    """Raise UserError for a Git LFS pointer, which a clone without Git LFS has for a large file."""
    with path.open("rb") as stream:
        if stream.read(23) == b"version https://git-lfs":
            raise UserError(
                f"{path}: this is a Git LFS pointer, not the file: run `git lfs pull` in its folder"
            )


def check_finite(folder: Path, *, fp16: bool = False) -> None:
    """Read every tensor of the model in `folder`, one at a time.

    Raises UserError naming the first tensor that contains NaN or infinity or, with `fp16`, a
    magnitude above 65504, which bf16 can store and fp16 cannot. Pickled weights are not read.
    """
    import torch

    for path in weight_files(folder):
        with open_safetensors(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                tensor = file.get_tensor(name)
                if not tensor.is_floating_point() or tensor.numel() == 0:
                    continue
                if tensor.element_size() == 1:  # FP8 has no order in torch
                    tensor = tensor.float()
                low, high = (float(end) for end in torch.aminmax(tensor))
                if not (abs(low) < float("inf") and abs(high) < float("inf")):
                    raise UserError(
                        f"{path}: {name} contains NaN or infinity: the model is broken, use "
                        "another checkpoint or download it again"
                    )
                if fp16 and max(-low, high) > FP16_MAX:
                    raise UserError(
                        f"{path}: {name} has a magnitude of {max(-low, high):.3g}, beyond the fp16 "
                        "range (65504): OpenVINO cannot store it, so this model cannot be exported"
                    )
