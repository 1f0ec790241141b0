"""Counts a model's parameters, operations and GEMMs, from its config.json alone if need be."""

import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.lora import ParamWrapper
from transformers import AutoModelForCausalLM

from intel_ft.artifacts.resolve import IR_FILE
from intel_ft.config import Config
from intel_ft.config_sections import ModelConfig
from intel_ft.decisions import Decision
from intel_ft.errors import UserError
from intel_ft.layers.fused_decoder import why_not_fusable
from intel_ft.layers.grouped_experts import RANK_MULTIPLE
from intel_ft.layers.mixture import expert_matrices
from intel_ft.layers.packed_attention import has_convolution
from intel_ft.models import gemm_rate
from intel_ft.models.adapter import add_lora
from intel_ft.models.exportable import export_decision
from intel_ft.models.fast_path import why_not_fused
from intel_ft.models.flops import StepCost, active_experts, expert_weights, step_cost
from intel_ft.models.load import (
    description_of,
    loaded_model_type,
    model_folder,
    refuse_both_ways,
)
from intel_ft.models.new_tokens import add_rows, describe_tokens, new_token_ids
from intel_ft.models.quantized import refuse_quantized
from intel_ft.models.reward import with_score
from intel_ft.models.saved_adapter import grow_embeddings, tensor_shapes
from intel_ft.models.start_adapter import describe_adapter, negative_of, read_config
from intel_ft.models.targets import adapted_modules, is_linear, own_layer
from intel_ft.models.tokenizer import adapter_folder
from intel_ft.plurals import count_of
from intel_ft.training.distillation import OWN_BASE, teacher_config


@dataclass(frozen=True)
class ModelSizes:
    """Counts of parameters and the dimensions that activations follow.

    linear: weights of the frozen linear layers except the head; kept_as_loaded: all other frozen
    parameters (embeddings, head, norms, biases; a tied head once), of which embeddings are those
    that are not also the head; outside_layers: those of embeddings and head, a tied one once;
    trained: parameters of the adapter, or all; why_not_fused: None if
    layers.fused_decoder computes the layers; packs: Transformers can give it packed attention;
    dora: the adapter is DoRA's. Of mixtures of experts: expert_weights are all frozen weights of
    experts, not in kept_as_loaded; experts those that one token uses; active_experts how many a
    token meets in each mixture, expert_intermediate the width of one, mixtures how many layers;
    expert_padding: elements that layers.grouped_experts adds to the copies of their A and B.
    """

    parameters: int
    linear: int
    kept_as_loaded: int
    trained: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    why_not_fused: str | None
    packs: bool
    dora: bool = False
    embeddings: int = 0
    outside_layers: int = 0
    experts: int = 0
    expert_weights: int = 0
    active_experts: int = 0
    expert_intermediate: int = 0
    mixtures: int = 0
    expert_padding: int = 0

    @property
    def active(self) -> int:
        """The base's parameters that one token uses."""
        return self.parameters - self.expert_weights + self.experts


@dataclass(frozen=True)
class CountedTeacher:
    """A distillation's teacher.

    cost: of a step, as if it trained; weights: their bytes, 0 if they are the student's own base.
    """

    sizes: ModelSizes
    cost: StepCost
    weights: int


@dataclass(frozen=True, eq=False)
class CountedModel:
    """A model without weights.

    description: its config.json; cost: of a step, without the teacher's; products: the GEMMs of a
    row of 1024 tokens, half of them supervised, over which a machine's GEMM rate is measured;
    decisions: which modules are adapted, and whether the result can be exported.
    """

    description: Any
    sizes: ModelSizes
    cost: StepCost
    products: list[gemm_rate.Gemm]
    decisions: tuple[Decision, ...] = ()
    teacher: CountedTeacher | None = None


def count_model(config: Config) -> CountedModel:
    """Count the model that `config` trains, and its teacher.

    Raises UserError for a model or target modules that do not exist, and for settings that a
    mixture of experts does not support; EnvironmentProblem for a Hub id whose config.json is not
    cached here if the Hub cannot be reached.
    """
    folder, description = model_folder(config.model, weights=False), description_of(config.model)
    refuse_quantized(folder, training=True)
    refuse_both_ways(folder, description)
    counted = count_description(config, description, _teacher(config))
    if counted.sizes.mixtures:
        _require_supported_mixture(config)
    return counted


def _require_supported_mixture(config: Config) -> None:
    if config.backend.shard:
        raise UserError("backend.shard does not support mixtures of experts: set it to false")
    if config.base_dtype == "int4":
        raise UserError(
            "model.base_dtype=int4 does not support mixtures of experts: set it to nf4 or int8, and"
            " export the run with --format int4"
        )


def count_description(
    config: Config, description: Any, teacher: CountedTeacher | None = None
) -> CountedModel:
    """Count a model of this description in place of the config's own."""
    model, settings = without_weights(config.model, description), config.model
    folder = None if settings.adapter is None else adapter_folder(settings.adapter)
    if folder is not None:
        grow_embeddings(model, folder, tensor_shapes(folder))
    add_rows(model, tokens := new_token_ids(settings))
    if config.method.name == "reward":
        model = with_score(model)
    if config.method.trains_all:
        model.requires_grad_(True)
    else:
        with torch.device("meta"):  # a 7B model's adapter takes seconds to initialize
            if folder is not None and settings.continued_adapter is not None:
                model = get_peft_model(model, read_config(folder))
            else:
                model = add_lora(model, config.method, settings.name_or_path, None, tokens)
        if folder is not None and settings.merged_adapter is not None:
            negative_of(model, folder)  # refuses what cannot be merged
    adapted = [] if config.method.trains_all else adapted_modules(model, config.method)
    return CountedModel(
        description,
        sizes_for(config, model),
        step_cost(model),
        gemm_rate.linear_gemms(model, 1024, 0.5),
        (
            *describe_adapter(settings),
            *describe_tokens(settings),
            *adapted,
            export_decision(model.config.model_type, scores=config.method.name == "reward"),
        ),
        teacher,
    )


def sizes_for(config: Config, model: Any) -> ModelSizes:
    """The sizes of a model as `config` trains it; it may be on torch's `meta` device."""
    fused, dora = why_not_fused(model, config), config.method.use_dora
    return replace(model_sizes(model), why_not_fused=fused, dora=dora)


def describe_mixture(sizes: ModelSizes) -> list[Decision]:
    """How many of a mixture's parameters a token uses; nothing for a model without experts."""
    if not sizes.mixtures:
        return []
    reason = (
        f"it meets {count_of(sizes.active_experts, 'expert')} in each of {sizes.mixtures} layers"
    )
    value = f"{sizes.active:,} of the base's {sizes.parameters:,}"
    return [Decision("parameters per token", value, reason)]


def _teacher(config: Config) -> CountedTeacher | None:
    if config.method.name != "distill":
        return None
    other = teacher_config(config)
    model = without_weights(other, description_of(other))
    sizes = model_sizes(model)
    ir = (model_folder(other, weights=False) / IR_FILE).with_suffix(".bin")
    weights = ir.stat().st_size if ir.is_file() else 2 * sizes.parameters
    shared = config.method.teacher == OWN_BASE and not config.method.trains_all
    return CountedTeacher(sizes, step_cost(model), 0 if shared else weights)


def without_weights(config: ModelConfig, description: Any) -> Any:
    """The frozen model on torch's `meta` device."""
    if loaded_model_type(description) != description.model_type:
        # from_pretrained takes the text model of a multimodal one; from_config does not (5.5).
        description = description.get_text_config()
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoModelForCausalLM.from_config(
            description, dtype=torch.bfloat16, trust_remote_code=config.trust_remote_code
        ).requires_grad_(False)


def model_sizes(model: Any) -> ModelSizes:
    """The sizes of a model, with or without an adapter; it may be on torch's `meta` device."""
    text = model.config.get_text_config()
    head = own_layer(model.get_output_embeddings())
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    linear = sum(
        module.weight.numel()
        for module in model.modules()
        if is_linear(module) and module is not head and not module.weight.requires_grad
    )
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    table = own_layer(base.get_input_embeddings()).weight
    alone = not table.requires_grad and (head is None or head.weight is not table)
    heads = getattr(text, "num_attention_heads", 0)  # Mamba has none
    matrices = [matrix for matrix in expert_matrices(model) if not matrix.weight.requires_grad]
    last = [matrix for matrix in matrices if not matrix.doubled]
    expert_total = sum(matrix.weight.numel() for matrix in matrices)
    return ModelSizes(
        parameters=frozen or trained,
        linear=linear,
        kept_as_loaded=frozen - linear - expert_total,
        trained=trained,
        hidden=text.hidden_size,
        intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        layers=text.num_hidden_layers,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // max(1, heads),
        vocabulary=text.vocab_size,
        why_not_fused=why_not_fusable(model),
        packs=bool(base._supports_attention_backend) and not has_convolution(base),
        embeddings=table.numel() if alone else 0,
        outside_layers=sum(w.numel() for w in {table} | ({head.weight} if head else set())),
        experts=expert_weights(model)[0],
        expert_weights=expert_total,
        active_experts=active_experts(model.config) if matrices else 0,
        expert_intermediate=min(last[0].weight.shape[1:]) if last else 0,
        mixtures=len({matrix.block for matrix in matrices}),
        expert_padding=sum(_padding(module) for module in model.modules()),
    )


def _padding(module: Any) -> int:
    """Elements that fill up the rank of A and B of all experts, for one parameter."""
    if not isinstance(module, ParamWrapper) or module.num_experts == 1:
        return 0
    a, b, experts = (
        module.lora_A["default"].weight,
        module.lora_B["default"].weight,
        module.num_experts,
    )
    return int(experts * (-(len(a) // experts) % RANK_MULTIPLE) * (a.shape[1] + len(b)))
