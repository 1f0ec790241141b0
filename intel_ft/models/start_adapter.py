"""The adapter that a run starts from (model.adapter): what it is, and adding it to the base."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from peft.tuners import lora
from peft.tuners.lora import LoraLayer
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file

from intel_ft.artifacts.int4_base import require_any_base
from intel_ft.config_sections import ModelConfig
from intel_ft.decisions import Decision
from intel_ft.errors import UserError
from intel_ft.models.adapter import WEIGHTS
from intel_ft.models.lora_init import Initial, Pair, scale_of
from intel_ft.models.targets import is_linear

_MORE_THAN_LORA = {
    "use_dora": "DoRA",
    "modules_to_save": "modules that were trained in full",
    "trainable_token_indices": "embeddings of new tokens",
    "target_parameters": "adapted parameters",
    "lora_bias": "biases in LoRA",
}
_UNSUPPORTED = {
    "layer_replication": "it replicates layers",
    "use_qalora": "it is QA-LoRA",
    "alora_invocation_tokens": "it is activated by tokens",
}
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def describe_adapter(model: ModelConfig) -> list[Decision]:
    """What the run starts from besides its base."""
    if model.adapter is None:
        return []
    how = "added to the base weights; a new adapter is trained"
    if model.continued_adapter is not None:
        how = "trained further, with its own rank and targets and a new optimizer state"
    return [Decision("model.adapter", model.adapter, how)]


def read_config(folder: Path) -> LoraConfig:
    """peft's config of the adapter in `folder`. Raises UserError if it cannot train further."""
    require_any_base(folder)
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError, OSError) as error:
        text = str(error).splitlines()[0]
        raise UserError(f"{folder}: its adapter_config.json cannot be read ({text})") from None
    reason: str | None = None
    if not isinstance(config, LoraConfig) or config.peft_type != "LORA":
        reason = f"it is of type {config.peft_type}, and only LoRA is supported"
    elif config.bias != "none":
        reason = "it has biases of the base that were trained"
    elif str(config.init_lora_weights).startswith(_CHANGED_BASE):
        reason = (
            f"it was saved with init_lora_weights={config.init_lora_weights}, for another base:"
            " convert it to plain LoRA when saving it (path_initial_model_for_weight_conversion)"
        )
    else:
        reason = next((text for n, text in _UNSUPPORTED.items() if getattr(config, n, None)), None)
    if reason:
        raise UserError(f"model.adapter: {folder}: {reason}")
    return config


def why_not_plain(config: LoraConfig) -> str | None:
    """What an adapter has beyond LoRA of linear layers, or None."""
    return next((text for n, text in _MORE_THAN_LORA.items() if getattr(config, n, None)), None)


@torch.no_grad()
def negative_of(model: Any, folder: Path) -> Initial:
    """The adapter in `folder` with its sign changed, for the scale of the new LoRA of `model`.

    Subtracted from the base (lora_init.subtract_from_base), it is merged. All layers have the same
    rank, filled up with zeros. Raises UserError for an adapter that is more than LoRA on linear
    layers, or a new one on others: their sum could not be saved as one adapter.
    """
    remedy = (
        f"merge it first (intel-ft merge {folder} --output FOLDER) and set model.name_or_path to"
        " that folder"
    )
    config = read_config(folder)
    if text := why_not_plain(config):
        raise UserError(f"model.adapter: {folder}: it has {text}: {remedy}")
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if isinstance(module, LoraLayer) and type(module) is not lora.Linear:
            raise UserError(f"model.adapter_mode=merge: {name} is not a linear layer: {remedy}")
    weights, scale = load_file(folder / WEIGHTS), scale_of(model.peft_config["default"])
    pairs: Initial = {}
    for key, a in weights.items():
        name, ending, _ = key.partition(".lora_A.weight")
        if not ending:
            continue
        module = modules.get(name)
        if type(module) is not lora.Linear and not (module is not None and is_linear(module)):
            raise UserError(f"model.adapter: {folder}: {name} is not a linear layer: {remedy}")
        layer = name.removeprefix("base_model.model.")
        alphas = config.alpha_pattern
        alpha = alphas.get(get_pattern_key(alphas.keys(), layer), config.lora_alpha)
        own = alpha / (len(a) ** 0.5 if config.use_rslora else len(a))
        pairs[name] = Pair(a.float(), weights[f"{name}.lora_B.weight"].float() * (-own / scale))
    rank = max((len(pair.a) for pair in pairs.values()), default=0)
    if not rank or 2 * len(pairs) != len(weights):
        raise UserError(f"model.adapter: {folder}: it has tensors other than LoRA's: {remedy}")
    return {name: _filled(pair, rank) for name, pair in pairs.items()}


def _filled(pair: Pair, rank: int) -> Pair:
    """The same product from matrices of this rank."""
    zeros = rank - len(pair.a)
    pad = torch.nn.functional.pad
    return Pair(pad(pair.a, (0, 0, 0, zeros)).contiguous(), pad(pair.b, (0, zeros)).contiguous())
