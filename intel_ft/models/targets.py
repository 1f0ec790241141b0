"""Which modules get an adapter, which ones stay frozen, and why.

`choose_targets` turns `method.target_modules` into peft's setting. `adapted_modules` describes the
result for every model, because peft (0.21) adapts more and less than the names say: it takes the
names of linear layers for fused experts, and leaves out whatever is not a linear layer.
"""

import difflib
import re
from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.utils import TrainableTokensWrapper
from peft.utils import transformers_weight_conversion as conversion
from transformers.pytorch_utils import Conv1D

from intel_ft.config import MethodConfig
from intel_ft.decisions import Decision
from intel_ft.errors import UserError

ALL_LINEAR = "all-linear"
_CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
_STATE_SPACE = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
_NO_EXPERTS = "peft does not adapt the fused experts of this model_type"
_NOT_TEXT = "it is not part of the language model, and the examples are text"
_NO_ROUTER = "it is not a linear layer"
_NAME_OF_EXPERTS = "peft takes this name for the fused experts alone"


def is_linear(module: torch.nn.Module) -> bool:
    """Whether `module` is a linear layer, including GPT-2's Conv1D."""
    return isinstance(module, torch.nn.Linear | Conv1D)


def own_layer(module: Any) -> Any:
    """The embedding or linear layer itself, where peft trains single rows of it."""
    if isinstance(module, TrainableTokensWrapper):
        return module.token_adapter.get_base_layer()
    return module


def linear_layers(model: Any) -> dict[str, torch.nn.Module]:
    """The linear layers of a model without adapter, by name, except its head."""
    head = model.get_output_embeddings()
    modules = model.named_modules()
    return {name: module for name, module in modules if is_linear(module) and module is not head}


def choose_targets(model: Any, method: MethodConfig) -> str | list[str]:
    """What peft gets as `target_modules`, for a model that has no adapter yet.

    all-linear leaves out what cannot be adapted. Raises UserError for a name that no module has,
    for a module that is named and cannot be adapted, and for options that peft does not have for
    fused experts.
    """
    _require_modules(model, method.target_modules)
    refuse_tied(model, method.target_modules, "method.target_modules")
    linear, experts = linear_layers(model), _names_of_experts(model)
    outside = _outside_text(model)
    reasons = {name: _why_not(model, name, module, outside) for name, module in linear.items()}
    left_out = {name: reason for name, reason in reasons.items() if reason}
    if method.target_modules != ALL_LINEAR:
        for name, reason in left_out.items():
            if matches(method.target_modules, name):
                raise UserError(f"method.target_modules: {name} cannot be adapted: {reason}")
    used = any(_takes(method.target_modules, name, model) for name in experts)
    if used and (option := _not_for_experts(method)):
        others = sorted({_leaf(name) for name in linear if _leaf(name) not in experts})
        raise UserError(
            f"{option}: peft cannot use it on this model's fused experts: leave it out, or adapt "
            f"other layers alone: method.target_modules=[{', '.join(others)}]"
        )
    if method.target_modules != ALL_LINEAR:
        return method.target_modules
    if not left_out and experts == _mapping(model):
        return ALL_LINEAR
    taken = _mapping(model)
    return [name for name in linear if name not in left_out and _leaf(name) not in taken] + experts


def _require_modules(model: Any, targets: str | list[str]) -> None:
    """Raise UserError for the names in a list that no module and no fused expert has."""
    if isinstance(targets, str):
        return  # peft refuses a pattern that matches nothing
    names = [*(name for name, _ in model.named_modules()), *_mapping(model)]
    unknown = [target for target in targets if not any(matches([target], name) for name in names)]
    if unknown:
        leaves = sorted({_leaf(name) for name in linear_layers(model)})
        close = [difflib.get_close_matches(_leaf(name), leaves, n=1) for name in unknown]
        hints = [f" (did you mean {hint[0]}?)" if hint else "" for hint in close]
        missing = ", ".join(f"{name}{hint}" for name, hint in zip(unknown, hints, strict=True))
        raise UserError(
            f"method.target_modules: this model has no module {missing}: its linear layers are "
            f"{', '.join(leaves)}"
        )


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
            kind = _kind(name)
            if isinstance(module, ParamWrapper):
                kind = f"{kind}.{module.parameter_name}".removesuffix(".weight")
            adapted[kind] = adapted.get(kind, 0) + 1
    frozen: dict[str, dict[str, None]] = {}
    for name, reason in _frozen(model, method):
        kind = _kind(name)
        frozen.setdefault(reason, {})[f"some {kind}" if kind in adapted else kind] = None
    chosen = method.target_modules
    setting = chosen if isinstance(chosen, str) else f"[{', '.join(chosen)}]"
    decisions = [
        Decision(
            "adapted modules",
            f"{', '.join(adapted)} ({sum(adapted.values())} modules)",
            f"method.target_modules={setting}",
        )
    ]
    for reason, kinds in frozen.items():
        decisions.append(Decision("modules left frozen", ", ".join(kinds), reason))
    if not frozen:
        reason = "every other linear layer has an adapter"
        decisions.append(Decision("modules left frozen", "embeddings, norms and head", reason))
    return decisions


def _frozen(model: Any, method: MethodConfig) -> Iterator[tuple[str, str]]:
    """The matrices that stay frozen, other than embeddings and head, each with the reason."""
    base = model.get_base_model()
    head, mapping = own_layer(base.get_output_embeddings()), _mapping(base)
    adapted: set[int] = set()
    wrapped: set[tuple[int, str]] = set()
    outside = _outside_text(base)
    for module in base.modules():
        if isinstance(module, ParamWrapper):
            wrapped.add((id(module.get_base_layer()), module.parameter_name))
        elif isinstance(module, LoraLayer):
            adapted.update(id(part) for part in module.modules())
    for name, module in base.named_modules():
        if module is head or id(module) in adapted or isinstance(module, torch.nn.Embedding):
            continue
        if id(module) in outside:
            yield ".".join(name.split(".")[:2]), _NOT_TEXT
            continue
        if is_linear(module):
            if not module.weight.requires_grad:  # unlike the adapter's own
                reason = _why_not(base, name, module, outside)
                yield name, reason or _why_frozen(name, method, mapping)
            continue
        for parameter, weight in module.named_parameters(recurse=False):
            router = weight.dim() == 2 and parameter == "weight"
            expert = weight.dim() == 3 and not isinstance(module, _CONVOLUTIONS)
            if (router or expert) and (id(module), parameter) not in wrapped:
                path = f"{name}.{parameter}".removesuffix(".weight")
                yield path, _NO_EXPERTS if expert and not mapping else _NO_ROUTER


def _why_frozen(name: str, method: MethodConfig, mapping: list[str]) -> str:
    return _NAME_OF_EXPERTS if _leaf(name) in mapping else "not in method.target_modules"


def _why_not(model: Any, name: str, module: torch.nn.Module, outside: set[int]) -> str | None:
    """Why this linear layer cannot get an adapter, or None."""
    if not _returns_one_tensor(module):
        return "it returns more than a linear layer's output"
    if model.config.model_type in _STATE_SPACE and _leaf(name) == "out_proj":
        return "the kernels of state-space layers read its weight past an adapter"
    if id(module) in outside:
        return _NOT_TEXT
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
    head = model.get_output_embeddings()
    text |= {id(module) for module in (head.modules() if head is not None else ())}
    owners = (m for m in model.modules() if next(m.parameters(recurse=False), None) is not None)
    return {id(module) for module in owners} - text


def _mapping(model: Any) -> list[str]:
    """The names that peft takes for fused experts and their router in this family."""
    pattern = conversion._MODEL_TO_CONVERSION_PATTERN.get(model.config.model_type)
    return list(conversion._MOE_TARGET_MODULE_MAPPING.get(pattern, {}))


def _names_of_experts(model: Any) -> list[str]:
    """`_mapping` without the router, where that cannot be adapted.

    peft replaces a router by a wrapper. Code that reads the router's other tensors then fails, and
    code that reads the weight of a linear router does not see the adapter.
    """
    names = _mapping(model)
    for name, module in model.named_modules() if names else ():
        if _leaf(name) == "gate":
            tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            if is_linear(module) or len(tensors) > 1:
                return [name for name in names if name != "gate"]
    return names


def _takes(targets: str | list[str], expert: str, model: Any) -> bool:
    """Whether `targets` name the experts' matrices `expert` (gate_proj, w1 and so on)."""
    if targets == ALL_LINEAR:
        return True
    if not isinstance(targets, str):
        return any(f".{target}".endswith(f".{expert}") for target in targets)
    owners = (name for name, module in model.named_modules() if hasattr(module, "gate_up_proj"))
    return any(re.fullmatch(targets, f"{owner}.{expert}") for owner in owners)


def matches(targets: str | list[str], name: str) -> bool:
    """Whether peft adapts the module `name` for these targets."""
    if targets == ALL_LINEAR:
        return False  # which is no pattern, and takes no embeddings
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(f".{name}".endswith(f".{target}") for target in targets)


def _not_for_experts(method: MethodConfig) -> str | None:
    """The option that peft does not have for fused experts, or None."""
    if method.dropout:
        return f"method.dropout={method.dropout:g}"
    if method.use_dora:
        return "method.use_dora=true"
    return f"method.init={method.init}" if method.init in ("pissa", "olora") else None


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _kind(name: str) -> str:
    """`name` within its layer: model.layers.3.mlp.experts.0.w1 is mlp.experts.*.w1."""
    name = name.removeprefix("base_model.model.").replace(".base_layer", "")
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name).partition(".*.")[2] or name
