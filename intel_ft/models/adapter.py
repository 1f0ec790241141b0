"""A new LoRA adapter on a frozen base; copying, loading and saving its weights."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from peft.utils import ModulesToSaveWrapper, TrainableTokensWrapper
from safetensors.torch import load_file

from intel_ft.config_method import MethodConfig
from intel_ft.decisions import Decision
from intel_ft.errors import UserError
from intel_ft.layers.fused_decoder import fuse_layers
from intel_ft.layers.lora_linear import fuse_linears
from intel_ft.layers.norms import fuse_norms
from intel_ft.layers.rotary import fuse_rotary
from intel_ft.models.new_tokens import require_tied, trained_layers, use_rows
from intel_ft.models.targets import choose_targets, linear_layers, refuse_tied
from intel_ft.optional_packages import without_bitsandbytes

WEIGHTS = "adapter_model.safetensors"


def add_lora(
    model: Any,
    method: MethodConfig,
    base_name: str,
    revision: str | None,
    new_tokens: Sequence[int] = (),
) -> Any:
    """The base with new LoRA weights in float32 and copies of `method.modules_to_save`.

    Only these train, and the embeddings of `new_tokens`, ids for which models.new_tokens added
    rows. For LoRA that starts as a part of the base, see models.lora_init. Raises UserError if
    `method.target_modules` names no linear layer of this model, or `method.modules_to_save` no
    module.
    """
    saved = _modules_to_save(model, method)
    rows = trained_layers(model, new_tokens, method, saved) if new_tokens else {}
    config = lora_config(model, method)
    config.modules_to_save = saved or None
    config.trainable_token_indices = rows or None
    try:
        with without_bitsandbytes(), without_pattern_warning():
            adapted = get_peft_model(model, config)
    except ValueError as error:
        linear = sorted({name.split(".")[-1] for name in linear_layers(model)})
        raise UserError(
            f"method.target_modules: {str(error).splitlines()[0]} The linear layers of this model "
            f"are {', '.join(linear)}"
        ) from None
    require_tied(adapted)
    return prepare_to_train(adapted, base_name, revision)


def prepare_to_train(adapted: Any, base_name: str, revision: str | None) -> Any:
    """A PEFT model whose weights that train are float32, and whose config names the base."""
    # Set after get_peft_model, which writes the base's folder there and warns about another name.
    config = adapted.peft_config["default"]
    config.base_model_name_or_path, config.revision = base_name, revision
    for module in adapted.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.modules_to_save.float()
            module.register_forward_hook(lambda _, __, output: output.to(adapted.dtype))
        elif isinstance(module, TrainableTokensWrapper):
            module.token_adapter.trainable_tokens_delta.float()
    use_rows(adapted)
    return adapted


def lora_config(model: Any, method: MethodConfig) -> LoraConfig:
    """peft's config for an adapter on `model`, which has none yet; see `choose_targets`."""
    targets = choose_targets(model, method)
    return LoraConfig(
        task_type="SEQ_CLS" if method.name == "reward" else "CAUSAL_LM",  # peft saves the score
        r=method.r,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=targets.modules,
        target_parameters=targets.parameters or None,
        rank_pattern=targets.ranks(method.r),
        alpha_pattern=targets.ranks(method.alpha),
        use_dora=method.use_dora,
        use_rslora=method.use_rslora,
        init_lora_weights="gaussian" if method.init == "gaussian" else True,
    )


def _modules_to_save(model: Any, method: MethodConfig) -> list[str]:
    """The full names of `method.modules_to_save`; for peft, `norm` would match each `..._norm`."""
    refuse_tied(model, method.modules_to_save, "method.modules_to_save")
    names: list[str] = []
    for name in method.modules_to_save:
        modules = [n for n, _ in model.named_modules() if f".{n}".endswith(f".{name}")]
        if not modules:
            raise UserError(f"method.modules_to_save: this model has no module {name}")
        names += modules
    return names


@contextmanager
def without_pattern_warning() -> Iterator[None]:
    """No warning of peft (0.21) that ranks of parameters match no module: they match parameters."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"The following \w+_pattern keys did not match")
        yield


def fuse(model: Any) -> Decision:
    """Fuse the decoder layers of a PEFT model or, where that is not possible, its LoRA layers."""
    why_not = fuse_layers(model)
    if why_not is None:
        return Decision("decoder layers", "fused", "checked: each layer's output stays the same")
    parts = f"{fuse_linears(model)} linear layers and {fuse_norms(model)} norms are"
    if rotations := fuse_rotary(model):
        parts = parts.replace(" and", ",").replace(" are", f" and {rotations} rotations are")
    return Decision("decoder layers", f"not fused, but {parts}", why_not)


def adapter_weights(model: Any) -> dict[str, torch.Tensor]:
    """A copy of the trainable weights by parameter name.

    It is taken from `state_dict`, because IPEX keeps parameters in its own layout.
    """
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    return {n: w.detach().clone() for n, w in model.state_dict().items() if n in trained}


def restore_weights(model: Any, weights: dict[str, torch.Tensor]) -> None:
    """Restore what `adapter_weights` copied, module by module: IPEX's modules need that."""
    for name, value in weights.items():
        module, _, parameter = name.rpartition(".")
        model.get_submodule(module).load_state_dict({parameter: value}, strict=False)


def load_weights(model: Any, folder: Path) -> None:
    """Load the adapter weights of a checkpoint into `model`, in place."""
    set_peft_model_state_dict(model, load_file(folder / WEIGHTS))


def save_adapter(model: Any, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors, without peft's model card."""
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
