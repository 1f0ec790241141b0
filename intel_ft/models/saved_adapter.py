"""Applies a saved LoRA adapter to its base, and refuses one that does not match."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from intel_ft.artifacts.resolve import trained_token_ids
from intel_ft.errors import UserError
from intel_ft.models.adapter import WEIGHTS, without_pattern_warning
from intel_ft.optional_packages import without_bitsandbytes
from intel_ft.plurals import count_of


def apply_adapter(base: Any, folder: Path, *, trains: bool = False) -> Any:
    """`base` (changed in place) with the adapter in `folder`, as a peft.PeftModel in eval mode.

    The embeddings of `base` grow to those of the adapter. trains: the adapter's weights, in float32
    then, are trainable. Raises UserError for an adapter without weights, with NaN or infinity in
    them, or trained on a base with other shapes.
    """
    from peft import PeftModel, get_peft_model_state_dict

    from intel_ft.models.new_tokens import use_rows

    shapes = tensor_shapes(folder)
    grow_embeddings(base, folder, shapes)
    try:
        with without_bitsandbytes(), without_pattern_warning():
            model = PeftModel.from_pretrained(base, str(folder), is_trainable=trains)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder}: this adapter does not fit its base model {_name(base)}: "
            f"{_first_line(error)}"
        ) from error
    # peft only warns about tensors that are left over or missing.
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
    embeddings = ("embed_tokens", "lm_head", "embed_in", "embed_out")
    unknown = [name for name in shapes if name not in expected and not _any_in(embeddings, name)]
    missing = [name for name in expected if name not in shapes]
    if wrong := unknown or missing:
        raise UserError(
            f"{folder}: this adapter does not fit its base model {_name(base)}: "
            f"{count_of(len(wrong), 'tensor')} {'too many' if unknown else 'missing'}, such as "
            f"{wrong[0]}"
        )
    use_rows(model)
    return model.eval()


def grow_embeddings(base: Any, folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Grow the embeddings of `base` to the rows that the adapter in `folder` has or trains.

    shapes: of the adapter's tensors.
    """
    from intel_ft.models.new_tokens import add_rows

    embeddings = [base.get_input_embeddings(), base.get_output_embeddings()]
    names = tuple(f".{n}.weight" for n, module in base.named_modules() if module in embeddings)
    rows = [shape[0] for name, shape in shapes.items() if name.endswith(names)]
    rows += [id_ + 1 for id_ in trained_token_ids(folder)]
    size = len(embeddings[0].weight)
    add_rows(base, range(size, max([size, *rows])))


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Read all of the adapter's tensors and check that they are finite; returns their shapes."""
    import torch
    from safetensors import SafetensorError, safe_open

    path = folder / WEIGHTS
    if not path.is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        hint = " (adapter_model.bin is a pickle file, which is never loaded)" if pickled else ""
        raise UserError(f"{folder}: the adapter has no {WEIGHTS}{hint}")
    shapes = {}
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                tensor = file.get_tensor(name)
                if not bool(torch.isfinite(tensor).all()):
                    raise UserError(
                        f"{path}: {name} holds NaN or infinity: training diverged; train again "
                        "with a lower learning rate, or use an earlier checkpoint"
                    )
                shapes[name] = tuple(tensor.shape)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: the file is damaged ({_first_line(error)})") from None
    return shapes


def _any_in(words: tuple[str, ...], name: str) -> bool:
    return any(word in name for word in words)


def _name(base: Any) -> str:
    return str(base.config.name_or_path or base.config.model_type)


def _first_line(error: Exception) -> str:
    """The informative line of a library's message; a size mismatch is not in the first one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = next((line for line in lines if "mismatch" in line), lines[0] if lines else "")
    return line[:200]
