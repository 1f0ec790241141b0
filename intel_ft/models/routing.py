"""What the routers of a mixture decide while it trains: the experts' load, the auxiliary loss.

Both are read by hooks, in the forward that trains: not without gradients (a teacher, validation),
and not when activation checkpointing runs a layer once more.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from intel_ft.decisions import Decision
from intel_ft.errors import UserError
from intel_ft.layers.fused_experts import ExpertModule, expert_modules
from intel_ft.models.flops import active_experts


@dataclass(eq=False)
class Routing:
    """Counts, and if asked for the auxiliary loss, of the rows that are run inside `watching`.

    layers: the names of the mixtures; counts int64 [layers, experts]: (token, expert) pairs since
    `take_counts`, without padding; coefficient: of the auxiliary loss, 0 without one.
    """

    layers: list[str]
    counts: Tensor
    coefficient: float = 0.0
    balance: Any = None
    tokens: int = 0
    logits: list[Tensor] = field(default_factory=list)

    @contextmanager
    def watching(self, tokens: int) -> Iterator[None]:
        """Around the forward of a row with this many tokens before its padding."""
        self.tokens, self.logits = tokens, []
        try:
            yield
        finally:
            self.tokens = 0

    @property
    def is_watching(self) -> bool:
        """Whether this forward is one that trains."""
        return self.tokens > 0 and torch.is_grad_enabled()

    def auxiliary_loss(self, tokens: int) -> Tensor:
        """The coefficient times Transformers' load-balancing loss of the row watched last."""
        padded = len(self.logits[0])
        mask = (torch.arange(padded, device=self.logits[0].device) < tokens).long()[None]
        logits = tuple(layer.reshape(padded, -1) for layer in self.logits)
        self.logits = []
        loss: Tensor = self.coefficient * self.balance(logits, mask)
        return loss

    def take_counts(self) -> Tensor:
        """The counts since the last call."""
        counts = self.counts.clone()
        self.counts.zero_()
        return counts


def watch(model: Any, auxiliary: bool | str) -> tuple[Routing | None, list[Decision]]:
    """Hooks for the mixtures of `model`; None for a model without one.

    auxiliary: `train.router_aux_loss`. Raises UserError if it is true and the model has no such
    loss.
    """
    parts = [part for part in expert_modules(model, trained=True) if not _is_second_of_two(part)]
    coefficient, decision = _coefficient(model, auxiliary)
    if not parts:
        return None, [decision] if auxiliary is True else []
    experts = getattr(parts[0].module, parts[0].parameters[0]).shape[0]
    routing = Routing([_layer(part) for part in parts], torch.zeros(len(parts), experts).long())
    for row, part in enumerate(parts):
        _count_calls(model, part, routing, row)
    if coefficient:
        routing.coefficient, routing.balance = coefficient, _balance(model, experts)
        _record_logits(model, routing)
    return routing, [decision]


def _is_second_of_two(part: ExpertModule) -> bool:
    return not part.routes and part.name.endswith("output_linear")


def _layer(part: ExpertModule) -> str:
    """The mixture's name in the model: model.layers.3.mlp."""
    return part.name.removeprefix("base_model.model.").rpartition(".")[0]


def _count_calls(model: Any, part: ExpertModule, routing: Routing, row: int) -> None:
    def add(experts: Tensor) -> None:
        experts = experts.reshape(-1).cpu()
        routing.counts[row] += torch.bincount(experts, minlength=routing.counts.shape[1])

    def of_index(_: Any, arguments: tuple[Any, ...]) -> None:
        if routing.is_watching:
            add(arguments[1][: routing.tokens])

    def of_sorted(_: Any, __: Any, output: Any) -> None:
        if routing.is_watching:  # Granite MoE: sorted pairs, their tokens, gates, rows per expert
            _, tokens, _, sizes, _ = output
            experts = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
            add(experts[tokens.cpu() < routing.tokens])

    if not part.routes:
        block = model.get_submodule(part.name.rpartition(".")[0])
        block.router.register_forward_hook(of_sorted)
    else:
        part.outer.register_forward_pre_hook(of_index)


def _coefficient(model: Any, auxiliary: bool | str) -> tuple[float, Decision]:
    config, name = model.config.get_text_config(), "train.router_aux_loss"
    coefficient = float(getattr(config, "router_aux_loss_coef", None) or 0.0)
    if auxiliary is False:
        return 0.0, Decision(name, "off", "set in the config")
    if auxiliary == "auto" and not getattr(config, "output_router_logits", False):
        return 0.0, Decision(name, "off", "the model's config has no output_router_logits: true")
    why_not = _why_no_auxiliary_loss(model, coefficient)
    if why_not and auxiliary is True:
        raise UserError(f"train.router_aux_loss=true: {why_not}: leave it out")
    if why_not:
        return 0.0, Decision(name, "off", why_not)
    reason = "set in the config" if auxiliary is True else "as the model's config says"
    return coefficient, Decision(name, f"on, coefficient {coefficient:g}", reason)


def _why_no_auxiliary_loss(model: Any, coefficient: float) -> str | None:
    if not coefficient:
        return "this model's config has no router_aux_loss_coef"
    if _recorder(model) is None or not hasattr(_module_of(model), "load_balancing_loss_func"):
        return "Transformers computes no auxiliary loss for this model_type"
    return None


def _module_of(model: Any) -> Any:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return importlib.import_module(type(base).__module__)


def _recorder(model: Any) -> Any:
    """What Transformers would record as router_logits: a class of modules, an index of outputs."""
    decoder = (model.get_base_model() if hasattr(model, "get_base_model") else model).get_decoder()
    recorder = (getattr(decoder, "_can_record_outputs", None) or {}).get("router_logits")
    return recorder if hasattr(recorder, "target_class") else None


def _record_logits(model: Any, routing: Routing) -> None:
    recorder = _recorder(model)

    def record(_: Any, __: Any, output: Any) -> None:
        if routing.is_watching:
            routing.logits.append(output[recorder.index] if isinstance(output, tuple) else output)

    for name, module in model.named_modules():
        wanted = recorder.layer_name is None or recorder.layer_name in name
        if isinstance(module, recorder.target_class) and wanted:
            module.register_forward_hook(record)


def _balance(model: Any, experts: int) -> Any:
    function, per_token = _module_of(model).load_balancing_loss_func, active_experts(model.config)
    return lambda logits, mask: function(logits, experts, per_token, mask)
