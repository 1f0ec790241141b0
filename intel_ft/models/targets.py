"""Which modules get an adapter, which ones stay frozen, and why.

`choose_targets` turns `method.target_modules` into peft's setting. `adapted_modules` describes the
result for every model, because peft (0.21) adapts more and less than the names say: it takes the
names of linear layers for fused experts, and leaves out whatever is not a linear layer.
"""

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.utils import TrainableTokensWrapper
from peft.utils import transformers_weight_conversion as conversion
from transformers.pytorch_utils import Conv1D

from intel_ft.config_method import READS_BASE, MethodConfig
from intel_ft.decisions import Decision
from intel_ft.errors import UserError
from intel_ft.layers.mixture import ExpertMatrix, expert_matrices, is_called, routers

ALL_LINEAR = "all-linear"
ATTENTION_ONLY = "attention-only"
_STATE_SPACE = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
_NOT_TEXT = "it is not part of the language model, and the examples are text"
_NO_LINEAR = "it is not a linear layer"
_ROUTER = "a router is adapted only if method.target_modules names it"
_READ = "the model reads more of this router than its output"
_NOT_NAMED = "not in method.target_modules"


@dataclass(frozen=True)
class Targets:
    """What gets an adapter, as peft takes it.

    modules: its `target_modules`; parameters: its `target_parameters`, the experts and what peft
    adapts by parameter only; doubled: those of them that hold two matrices, whose rank and alpha
    are twice the others', as in peft's own conversion.
    """

    modules: str | list[str]
    parameters: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)

    def ranks(self, value: float) -> dict[str, Any]:
        """peft's `rank_pattern` for this rank, or `alpha_pattern` for this alpha."""
        return {re.escape(name): 2 * value for name in self.doubled}


def is_linear(module: torch.nn.Module) -> bool:
    """Whether `module` is a linear layer, including GPT-2's Conv1D."""
    return isinstance(module, torch.nn.Linear | Conv1D)


def own_layer(module: Any) -> Any:
    """The embedding or linear layer itself, where peft trains single rows of it."""
    if isinstance(module, TrainableTokensWrapper):
        return module.token_adapter.get_base_layer()
    return module


def output_layer(model: Any) -> Any:
    """The head of a language model, or the score head of a reward model (models.reward)."""
    head = model.get_output_embeddings()
    return getattr(model, "score", None) if head is None else head


def linear_layers(model: Any) -> dict[str, torch.nn.Module]:
    """The linear layers of a model without adapter, by name, except its head."""
    head = output_layer(model)
    modules = model.named_modules()
    return {name: module for name, module in modules if is_linear(module) and module is not head}


def choose_targets(model: Any, method: MethodConfig) -> Targets:
    """What peft gets, for a model that has no adapter yet.

    all-linear means every linear layer and the experts, without routers, and leaves out what cannot
    be adapted. Raises UserError for a name that no module has, for a module that is named and
    cannot be adapted, and for options that peft does not have for experts.
    """
    chosen = method.target_modules
    refuse_tied(model, chosen, "method.target_modules")
    linear, outside, choosers = linear_layers(model), _outside_text(model), routers(model)
    reasons = {
        name: _why_not(model, name, module, outside)
        for name, module in linear.items()
        if name not in choosers
    }
    if chosen == ATTENTION_ONLY:
        attention = {name: reason for name, reason in reasons.items() if _in_attention(name)}
        if not (wanted := _without_reason(attention)):
            raise UserError(
                "method.target_modules=attention-only: no linear layer of this model is part of "
                f"attention: name the layers, of {', '.join(_leaves(linear))}"
            )
        return Targets(_shortest(wanted, model))
    experts = expert_matrices(model)
    _require_modules(model, chosen, experts)
    for name, router in choosers.items():
        if matches(chosen, name):
            reasons[name] = _why_not_router(model, name, router)
    for name, reason in reasons.items():
        if reason and matches(chosen, name):
            raise UserError(f"method.target_modules: {name} cannot be adapted: {reason}")
    if experts or _mapping(model):
        return _targets_of_mixture(model, method, _without_reason(reasons), experts)
    some = chosen == ALL_LINEAR and any(reasons.values())
    return Targets(_shortest(_without_reason(reasons), model) if some else chosen)


def _targets_of_mixture(
    model: Any, method: MethodConfig, possible: list[str], experts: list[ExpertMatrix]
) -> Targets:
    """`choose_targets` for a mixture of experts; possible: the layers that can be adapted."""
    chosen = method.target_modules
    experts = [matrix for matrix in experts if _takes(chosen, matrix)]
    wanted = [name for name in possible if chosen == ALL_LINEAR or matches(chosen, name)]
    wanted += [name for name in _embeddings(model) if matches(chosen, name)]
    taken = _mapping(model)  # peft takes these names for the experts, wherever they are
    layers = {name: is_linear(model.get_submodule(name)) for name in possible}
    as_parameters = [n for n in wanted if _leaf(n) in taken or not layers.get(n, True)]
    if (experts or as_parameters) and (option := _not_for_experts(method)):
        others = sorted({_leaf(name) for name, is_layer in layers.items() if is_layer} - {*taken})
        raise UserError(
            f"{option}: peft cannot use it on this model's fused experts: leave it out, or adapt "
            f"other layers alone: method.target_modules=[{', '.join(others)}]"
        )
    if not wanted and not experts:
        raise UserError(
            f"method.target_modules={chosen}: no module of this model matches: its linear layers "
            f"are {', '.join(_leaves(linear_layers(model)))}"
        )
    parameters = [matrix.path for matrix in experts]
    return Targets(
        _shortest([name for name in wanted if name not in as_parameters], model),
        _shortest_parameters([*parameters, *(f"{name}.weight" for name in as_parameters)], model),
        _shortest_parameters([matrix.path for matrix in experts if matrix.doubled], model),
    )


def _embeddings(model: Any) -> list[str]:
    """The names of the embeddings and of the head."""
    head = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if module is head or isinstance(module, torch.nn.Embedding)
    ]


def _without_reason(reasons: dict[str, str | None]) -> list[str]:
    return [name for name, reason in reasons.items() if not reason]


def _shortest(names: list[str], model: Any) -> list[str]:
    """`names` within their layers, where that names no other module."""
    return _shortened(names, (name for name, _ in model.named_modules()))


def _shortest_parameters(names: list[str], model: Any) -> list[str]:
    return _shortened(names, (name for name, _ in model.named_parameters()))


def _shortened(names: list[str], every: Iterable[str]) -> list[str]:
    wanted = {*names}
    others = [name for name in every if name not in wanted]
    short = {name: kind_of(name) for name in names}
    ambiguous = {
        kind for kind in {*short.values()} if any(matches([kind], other) for other in others)
    }
    chosen = (name if kind in ambiguous else kind for name, kind in short.items())
    return list(dict.fromkeys(chosen))


def _require_modules(model: Any, targets: str | list[str], experts: Iterable[ExpertMatrix]) -> None:
    """Raise UserError for the names in a list that no module and no expert has."""
    if isinstance(targets, str):
        return  # peft refuses a pattern that matches nothing
    own = [name for matrix in experts for group in matrix.names() for name in group]
    names = [*(name for name, _ in model.named_modules()), *own]
    unknown = [target for target in targets if not any(matches([target], name) for name in names)]
    if unknown:
        leaves = _leaves([*linear_layers(model), *own])
        kinds = "linear layers and experts" if own else "linear layers"
        close = [difflib.get_close_matches(_leaf(name), leaves, n=1) for name in unknown]
        hints = [f" (did you mean {hint[0]}?)" if hint else "" for hint in close]
        missing = ", ".join(f"{name}{hint}" for name, hint in zip(unknown, hints, strict=True))
        raise UserError(
            f"method.target_modules: this model has no module {missing}: its {kinds} are "
            f"{', '.join(leaves)}"
        )


def _leaves(names: Iterable[str]) -> list[str]:
    return sorted({_leaf(name) for name in names})


def _in_attention(name: str) -> bool:
    """Whether a layer's name says that it is part of attention: self_attn.q_proj, attn.c_attn."""
    inner = kind_of(name)
    return "attn" in inner or "attention" in inner or _leaf(name) in _ATTENTION


_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")  # Nemotron H: mixer.q_proj


def refuse_tied(model: Any, targets: str | list[str], key: str) -> None:
    """Raise UserError if `targets`, the value of `key`, name one of two embeddings of one weight.

    Training would change one of them alone, and a merged model can hold only one weight.
    """
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not is_tied(model):
        return
    for name, module in model.named_modules():
        if (module is table or module is head) and matches(targets, name):
            raise UserError(
                f"{key}: {_leaf(name)} shares its weight with the model's other embedding "
                "(tie_word_embeddings is true), and a merged model can hold only one of them: "
                f"adapters on {_leaf(name)} cannot be merged, leave it out"
            )


def is_tied(model: Any) -> bool:
    """Whether the two embeddings of a base model are one weight."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = model.config.get_text_config().tie_word_embeddings
    return head is not None and (tied or head.weight is table.weight)


def adapted_modules(model: Any, method: MethodConfig) -> list[Decision]:
    """Which kinds of modules have an adapter, and which stay frozen, a decision for each reason.

    model: a PEFT model as `add_lora` returns it. A kind is a module's name within its layer.
    """
    adapted: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            kind = kind_of(name)
            if isinstance(module, ParamWrapper):
                kind = f"{kind}.{module.parameter_name}".removesuffix(".weight")
            adapted[kind] = adapted.get(kind, 0) + 1
    frozen: dict[str, dict[str, None]] = {}
    for name, reason in _frozen(model):
        kind = kind_of(name)
        frozen.setdefault(reason, {})[f"some {kind}" if kind in adapted else kind] = None
    chosen = method.target_modules
    setting = chosen if isinstance(chosen, str) else f"[{', '.join(chosen)}]"
    parameters = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    decisions = [
        Decision(
            "adapted modules",
            f"{', '.join(adapted)} ({sum(adapted.values())} modules, {parameters:,} parameters)",
            f"method.target_modules={setting}",
        )
    ]
    for reason, kinds in frozen.items():
        decisions.append(Decision("modules left frozen", ", ".join(kinds), reason))
    if not frozen:
        reason = "every other linear layer has an adapter"
        kept = "embeddings, norms and head"
        if model.get_output_embeddings() is None:  # a reward model, whose score head trains
            kept = "embeddings and norms"
        decisions.append(Decision("modules left frozen", kept, reason))
    return decisions


def _frozen(model: Any) -> Iterator[tuple[str, str]]:
    """The matrices that stay frozen, other than embeddings and head, each with the reason."""
    base = model.get_base_model()
    head = own_layer(output_layer(base))
    adapted = {id(part) for part in (head.modules() if head is not None else ())}
    wrapped: set[tuple[int, str]] = set()
    outside, choosers = _outside_text(base), {id(module) for module in routers(base).values()}
    experts = {(id(matrix.module), matrix.parameter) for matrix in expert_matrices(base)}
    for module in base.modules():
        if isinstance(module, ParamWrapper):
            wrapped.add((id(module.get_base_layer()), module.parameter_name))
        elif isinstance(module, LoraLayer):
            adapted.update(id(part) for part in module.modules())
    for name, module in base.named_modules():
        if id(module) in adapted or isinstance(module, torch.nn.Embedding):
            continue
        if id(module) in outside:
            yield ".".join(name.split(".")[:2]), _NOT_TEXT
            continue
        for parameter, weight in module.named_parameters(recurse=False):
            matrix = weight.dim() == 2 and (parameter == "weight" or "expert" in name)
            matrix = matrix and not parameter.endswith("bias")
            expert = (id(module), parameter) in experts
            if weight.requires_grad or (id(module), parameter) in wrapped:
                continue  # the adapter's own, or adapted
            if matrix or expert:
                path = f"{name}.{parameter}".removesuffix(".weight")
                reason = _ROUTER if id(module) in choosers else _NOT_NAMED
                if reason == _NOT_NAMED and is_linear(module):
                    reason = _why_not(base, name, module, outside) or reason
                elif reason == _NOT_NAMED and not expert:
                    reason = _NO_LINEAR
                yield path, reason


def _why_not(model: Any, name: str, module: torch.nn.Module, outside: set[int]) -> str | None:
    """Why this linear layer cannot get an adapter, or None."""
    if not _returns_one_tensor(module):
        return "it returns more than a linear layer's output"
    state_space = model.config.model_type in _STATE_SPACE
    if _leaf(name) == "dt_proj" or (state_space and _leaf(name) == "out_proj"):
        return (
            "the kernels of state-space layers read its weight directly and would bypass an adapter"
        )
    if id(module) in outside:
        return _NOT_TEXT
    return None


def _why_not_router(model: Any, name: str, module: Any) -> str | None:
    """Why a router that is named cannot get an adapter, or None."""
    if is_linear(module) and not _returns_one_tensor(module):
        return "it returns more than a linear layer's output"
    own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    if {tensor for tensor, _ in own} - {"weight", "bias"} or not is_called(model, name, module):
        return _READ
    return None


@torch.no_grad()
def _returns_one_tensor(module: Any) -> bool:
    """Whether a linear layer with its own forward (as in Falcon, Llama 4's router) is still one."""
    if type(module).forward in (torch.nn.Linear.forward, Conv1D.forward):
        return True
    out = module(torch.ones_like(module.weight[:1]))
    return isinstance(out, torch.Tensor) and out.shape[-1] == module.out_features


def _outside_text(model: Any) -> set[int]:
    """The ids of the modules that hold the images' or the audio's weights of a multimodal model."""
    if not any(f"{kind}_config" in model.config.sub_configs for kind in ("vision", "audio")):
        return set()
    text = {id(module) for module in model.get_decoder().modules()}
    head = output_layer(model)
    text |= {id(module) for module in (head.modules() if head is not None else ())}
    owners = (m for m in model.modules() if next(m.parameters(recurse=False), None) is not None)
    return {id(module) for module in owners} - text


def _mapping(model: Any) -> list[str]:
    """The names that peft takes for fused experts and their router in this family."""
    pattern = conversion._MODEL_TO_CONVERSION_PATTERN.get(model.config.model_type)
    return list(conversion._MOE_TARGET_MODULE_MAPPING.get(pattern, {}))


def _takes(targets: str | list[str], matrix: ExpertMatrix) -> bool:
    """Whether `targets` name this matrix of the experts (gate_up_proj, or gate_proj and up_proj).

    Raises UserError if they name one of two matrices that are one parameter.
    """
    if targets == ALL_LINEAR:
        return True
    for group in matrix.names():
        named = [name for name in group if matches(targets, name)]
        if named and len(named) < len(group):
            others = (_leaf(name) for name in group if name not in named)
            raise UserError(
                f"method.target_modules: {_leaf(named[0])} of this model's experts shares one"
                f" parameter with {', '.join(others)}: name both"
            )
        if named:
            return True
    return False


def matches(targets: str | list[str], name: str) -> bool:
    """Whether peft adapts the module `name` for these targets."""
    if targets in (ALL_LINEAR, ATTENTION_ONLY):
        return False  # which are no patterns, and take no embeddings
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(f".{name}".endswith(f".{target}") for target in targets)


def _not_for_experts(method: MethodConfig) -> str | None:
    """The option that peft does not have for fused experts, or None."""
    if method.dropout:
        return f"method.dropout={method.dropout:g}"
    if method.use_dora:
        return "method.use_dora=true"
    return f"method.init={method.init}" if method.init in READS_BASE else None


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def kind_of(name: str) -> str:
    """`name` within its layer: model.layers.3.mlp.experts.0.w1 is mlp.experts.*.w1."""
    name = name.removeprefix("base_model.model.").replace(".base_layer", "")
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name).partition(".*.")[2] or name
