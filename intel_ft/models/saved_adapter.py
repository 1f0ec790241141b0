"""A LoRA adapter onto its base, refused by name where the two do not belong together; called from
inference.torch_lm and export.merge.
"""

from pathlib import Path
from typing import Any

from intel_ft.errors import UserError
from intel_ft.models.adapter import WEIGHTS


def apply_adapter(base: Any, folder: Path) -> Any:
    """`base` (changed in place) with the adapter in `folder`, as a peft.PeftModel in eval mode.

    Raises UserError where the adapter has no weights, holds NaN or infinity, or was trained on a
    base of other shapes.
    """
    from peft import PeftModel, get_peft_model_state_dict

    shapes = _checked_shapes(folder)
    try:
        model = PeftModel.from_pretrained(base, str(folder))
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder}: this adapter does not fit its base model {_name(base)}: "
            f"{_first_line(error)}"
        ) from error
    # Peft only warns about tensors it found no place for, or no tensor for.
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
    embeddings = ("embed_tokens", "lm_head", "embed_in", "embed_out")
    unknown = [name for name in shapes if name not in expected and not _any_in(embeddings, name)]
    missing = [name for name in expected if name not in shapes]
    if wrong := unknown or missing:
        raise UserError(
            f"{folder}: this adapter does not fit its base model {_name(base)}: {len(wrong)} "
            f"tensors {'have no place in it' if unknown else 'are missing'}, such as {wrong[0]}"
        )
    return model.eval()


def _checked_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The adapter's tensor names and shapes, once all of it has been read and found finite."""
    import torch
    from safetensors import SafetensorError, safe_open

    path = folder / WEIGHTS
    if not path.is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        hint = " (adapter_model.bin is a pickle, which is not loaded)" if pickled else ""
        raise UserError(f"{folder}: the adapter has no {WEIGHTS}{hint}")
    shapes = {}
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                tensor = file.get_tensor(name)
                if not bool(torch.isfinite(tensor).all()):
                    raise UserError(
                        f"{path}: {name} holds NaN or infinity: the training diverged; train again "
                        "with a lower learning rate, or take an earlier checkpoint"
                    )
                shapes[name] = tuple(tensor.shape)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged, cannot be read ({_first_line(error)})") from None
    return shapes


def _any_in(words: tuple[str, ...], name: str) -> bool:
    return any(word in name for word in words)


def _name(base: Any) -> str:
    return str(base.config.name_or_path or base.config.model_type)


def _first_line(error: Exception) -> str:
    """The start of a library's message that says the matter: size mismatches come on line two."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    chosen = next((line for line in lines if "mismatch" in line), lines[0] if lines else "")
    return chosen[:200]
