"""A copy of a large model folder with weights in fp16, which tracing maps from disk.

Tracing a bf16 folder would convert all weights at once, in memory. The copy is written tensor by
tensor; its weights have the dtype of the IR, so that they are mapped and the kernel can drop their
pages. It takes as much disk space as the model, until the trace is done.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from intel_ft.files import write_json
from intel_ft.models.weight_files import INDEX, SINGLE, open_safetensors, weight_files

LARGE = 2**30  # bytes of weights; smaller models are converted in memory
SHARD = 2**29  # bytes of a file of the copy


@contextmanager
def half_precision(folder: Path, beside: Path) -> Iterator[Path]:
    """Yield `folder`, or a copy in fp16 next to `beside` if the weights are large and not fp16."""
    files = weight_files(folder)
    if sum(path.stat().st_size for path in files) <= LARGE or _is_half(files):
        yield folder
        return
    with tempfile.TemporaryDirectory(dir=beside.parent, prefix=".fp16-") as aside:
        copy = Path(aside)
        for path in folder.iterdir():
            if path not in files and path.name not in (INDEX, SINGLE):
                (copy / path.name).symlink_to(path.resolve())
        _write_shards(files, copy)
        yield copy


def _is_half(files: list[Path]) -> bool:
    """Whether every tensor is in fp16 already."""
    for path in files:
        with open_safetensors(path) as file:
            names = file.keys()
            if any(file.get_slice(name).get_dtype() != "F16" for name in names):
                return False
    return True


def _write_shards(files: list[Path], copy: Path) -> None:
    import torch
    from safetensors.torch import save_file

    shard: dict[str, Any] = {}
    places: dict[str, str] = {}
    count = size = total = 0

    def flush() -> None:
        nonlocal shard, count, size
        if shard:
            name = f"model-{count:05d}.safetensors"
            save_file(shard, copy / name, metadata={"format": "pt"})
            places.update(dict.fromkeys(shard, name))
            shard, count, size = {}, count + 1, 0

    for path in files:
        # Opened again for each file, so that its pages can be dropped after it.
        with open_safetensors(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                tensor = file.get_tensor(name)
                half = tensor.to(torch.float16) if tensor.is_floating_point() else tensor.clone()
                shard[name] = half
                size += half.nbytes
                total += half.nbytes
                if size >= SHARD:
                    flush()
    flush()
    write_json(copy / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
