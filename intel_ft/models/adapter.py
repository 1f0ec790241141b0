"""A fresh LoRA adapter on a frozen base, and its weights in and out; called from training and
models.trained.
"""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import load_file

from intel_ft.config import MethodConfig
from intel_ft.decisions import Decision
from intel_ft.errors import UserError
from intel_ft.models.fused_decoder import fuse_layers
from intel_ft.models.lora_linear import fuse_linears

WEIGHTS = "adapter_model.safetensors"


def add_lora(model: Any, method: MethodConfig, base_name: str, revision: str | None) -> Any:
    """The base with fresh LoRA weights in float32, the only ones that train, beside copies of
    `method.modules_to_save`. Where LoRA begins as a part of the base, see models.initial.

    Raises UserError if `method.target_modules` names no linear layer of this model, or
    `method.modules_to_save` no module.
    """
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=method.r,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=method.target_modules,
        use_dora=method.use_dora,
        use_rslora=method.use_rslora,
        init_lora_weights="gaussian" if method.init == "gaussian" else True,
        modules_to_save=_modules_to_save(model, method) or None,
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
    # Only now: peft puts the folder of the base there, and warns if it replaces a name.
    adapted.peft_config["default"].base_model_name_or_path = base_name
    for module in adapted.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.modules_to_save.float()
            module.register_forward_hook(lambda _, __, output: output.to(model.dtype))
    return adapted


def _modules_to_save(model: Any, method: MethodConfig) -> list[str]:
    """The full names of `method.modules_to_save`; peft would take `norm` for every `..._norm`, too.

    Tied weights are one, and peft would train two copies of it, which no merged model can hold.
    """
    names: list[str] = []
    tied = model.config.get_text_config().tie_word_embeddings
    shared = (model.get_input_embeddings(), model.get_output_embeddings()) if tied else ()
    for wanted in method.modules_to_save:
        found = {n: m for n, m in model.named_modules() if f".{n}".endswith(f".{wanted}")}
        if not found:
            raise UserError(f"method.modules_to_save: this model has no module {wanted}")
        if any(module is one for module in found.values() for one in shared):
            raise UserError(
                f"method.modules_to_save: {wanted} shares its weight with the other end of this "
                "model (tie_word_embeddings): take it out"
            )
        names += found
    return names


def fuse(model: Any) -> Decision:
    """Fuse the decoder layers of a PEFT model or, where that is not possible, its LoRA layers."""
    why_not = fuse_layers(model)
    if why_not is None:
        return Decision("decoder layers", "fused", "checked: each layer's output stays the same")
    count = fuse_linears(model)
    return Decision("decoder layers", f"not fused, but {count} linear layers are", why_not)


def is_linear(module: torch.nn.Module) -> bool:
    """Whether `module` is a linear layer; GPT-2's are of a class of their own."""
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"


def adapter_weights(model: Any) -> dict[str, torch.Tensor]:
    """A copy of the trainable weights, by parameter name, as `state_dict` gives them: IPEX keeps
    them in a layout of its own.
    """
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    return {n: w.detach().clone() for n, w in model.state_dict().items() if n in trained}


def restore_weights(model: Any, weights: dict[str, torch.Tensor]) -> None:
    """Put back what `adapter_weights` copied; by modules, since IPEX's ask for all of their own."""
    for name, value in weights.items():
        owner, _, own_name = name.rpartition(".")
        model.get_submodule(owner).load_state_dict({own_name: value}, strict=False)


def load_weights(model: Any, folder: Path) -> None:
    """Load the adapter weights of a checkpoint into `model`, in place."""
    set_peft_model_state_dict(model, load_file(folder / WEIGHTS))


def save_adapter(model: Any, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors, without peft's model card."""
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
