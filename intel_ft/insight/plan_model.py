"""A model's sizes and products from its configuration alone, no weight loaded; called from
insight.plan.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from intel_ft.backends import gemm
from intel_ft.config import Config
from intel_ft.errors import UserError
from intel_ft.models.adapter import add_lora, is_linear
from intel_ft.models.cost import StepCost, step_cost
from intel_ft.models.fused import layer_of
from intel_ft.models.load import model_folder


@dataclass(frozen=True)
class ModelSizes:
    """Counts of parameters and the dimensions that activations follow.

    linear: weights of the frozen linear layers but the head; kept_as_loaded: all other frozen
    parameters (embeddings, head, norms, biases; a tied head once). lora: trained ones, of
    `lora_layers` layers. why_not_fused: None where models.fused computes the layers.
    """

    parameters: int
    linear: int
    kept_as_loaded: int
    lora: int
    lora_layers: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    why_not_fused: str | None
    packs: bool


@dataclass(frozen=True, eq=False)
class ModelPlan:
    """The sizes, a step's cost, and the products of a row of 1024 tokens, half of them
    supervised, as the machine's rate is measured with. description: the model's configuration.
    """

    description: Any
    sizes: ModelSizes
    cost: StepCost
    products: list[gemm.Product]


def model_plan(config: Config) -> ModelPlan:
    """What `config` trains. Raises UserError for a model or target modules that do not exist,
    EnvironmentProblem for a Hub id of which no configuration is here and that cannot be reached.
    """
    description = _description(config)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = AutoModelForCausalLM.from_config(
            description, dtype=torch.bfloat16, trust_remote_code=config.model.trust_remote_code
        ).requires_grad_(False)
        model = add_lora(base, config.method, config.model.name_or_path, None)
    return ModelPlan(
        description, _sizes(model), step_cost(model), gemm.linear_products(model, 1024, 0.5)
    )


def _sizes(model: Any) -> ModelSizes:
    text = model.config.get_text_config()
    head = model.get_output_embeddings()
    frozen = [p.numel() for p in model.parameters() if not p.requires_grad]
    lora = [p.numel() for p in model.parameters() if p.requires_grad]
    linear = sum(
        module.weight.numel()
        for module in model.modules()
        if is_linear(module) and module is not head and not module.weight.requires_grad
    )
    blocks = getattr(model.get_base_model().get_decoder(), "layers", None)
    layer = layer_of(blocks[0]) if blocks else "its decoder has no list of layers"
    heads = text.num_attention_heads
    return ModelSizes(
        parameters=sum(frozen),
        linear=linear,
        kept_as_loaded=sum(frozen) - linear,
        lora=sum(lora),
        lora_layers=len(lora) // 2,
        hidden=text.hidden_size,
        intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        layers=text.num_hidden_layers,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        vocabulary=text.vocab_size,
        why_not_fused=layer if isinstance(layer, str) else None,
        packs=bool(model.get_base_model()._supports_attention_backend),
    )


def _description(config: Config) -> Any:
    """The model's config.json as Transformers reads it."""
    folder = model_folder(config.model, weights=False)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=config.model.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{folder}: its config.json cannot be used ({reason})") from None
