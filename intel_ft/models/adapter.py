"""A fresh LoRA adapter on a frozen base, and its weights in and out; called from training."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file

from intel_ft.config import MethodConfig
from intel_ft.decisions import Decision
from intel_ft.errors import UserError
from intel_ft.models.fused import fuse_layers
from intel_ft.models.lora_linear import fuse_linears

WEIGHTS = "adapter_model.safetensors"


def add_lora(model: Any, method: MethodConfig, base_name: str, revision: str | None) -> Any:
    """The base with fresh LoRA weights in float32, the only ones that train.

    Raises UserError if `method.target_modules` names no linear layer of this model.
    """
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=method.r,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=method.target_modules,
        use_dora=method.use_dora,
        use_rslora=method.use_rslora,
        init_lora_weights=True if method.init == "default" else method.init,
        base_model_name_or_path=base_name,
        revision=revision,
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        head = model.get_output_embeddings()
        modules = [(name, m) for name, m in model.named_modules() if is_linear(m) and m is not head]
        linear = sorted({name.split(".")[-1] for name, _ in modules})
        raise UserError(
            f"method.target_modules: {str(error).splitlines()[0]} This model's linear layers are "
            f"{', '.join(linear)}"
        ) from None
    # peft replaces the id we carry with the folder the base was loaded from.
    adapted.peft_config["default"].base_model_name_or_path = base_name
    return adapted


def fuse(model: Any) -> Decision:
    """Give a PEFT model the fastest forward that computes the same: whole layers or, where they
    are of another kind, single linear ones.
    """
    why_not = fuse_layers(model)
    if why_not is None:
        return Decision("decoder layers", "fused", "checked: one layer gives the same both ways")
    count = fuse_linears(model)
    return Decision("decoder layers", f"the model's own, {count} linear layers fused", why_not)


def is_linear(module: torch.nn.Module) -> bool:
    """Whether `module` is a linear layer; GPT-2's are of a class of their own."""
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"


def adapter_weights(model: Any) -> dict[str, torch.Tensor]:
    """A copy of the trainable weights, by parameter name."""
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def restore_weights(model: Any, weights: dict[str, torch.Tensor]) -> None:
    """Put back what `adapter_weights` copied."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)


def load_weights(model: Any, folder: Path) -> None:
    """Load the adapter weights of a checkpoint into `model`, in place."""
    set_peft_model_state_dict(model, load_file(folder / WEIGHTS))
