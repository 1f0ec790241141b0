"""Which fast paths a model takes: the layout of its frozen weights, fused or compiled layers.

`choose_layout` and `why_not_fused` decide from the config and from sizes or structure alone, so
that a plan decides as the run will; `apply_fast_path` decides for a loaded model and converts it.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from peft.tuners.lora import ParamWrapper
from transformers import AttentionInterface

from intel_ft.config import Config
from intel_ft.decisions import Decision
from intel_ft.errors import EnvironmentProblem, UserError
from intel_ft.host import cpu
from intel_ft.host.devices import CPU
from intel_ft.layers import packed_attention
from intel_ft.layers.fused_decoder import why_not_fusable
from intel_ft.layers.fused_experts import fuse_experts
from intel_ft.layers.mapped import Keep, private
from intel_ft.layers.own_products import own_base
from intel_ft.layers.prepacked import can_prepack
from intel_ft.models.adapter import fuse
from intel_ft.models.frozen_base import Layout, convert_frozen_weights, linear_bytes
from intel_ft.models.loss import pack_head
from intel_ft.models.shared_base import (
    BaseFiles,
    SharedBase,
    base_facts,
    keep_parameters,
    shared_bytes,
)


def apply_fast_path(
    model: Any,
    config: Config,
    activations: int,
    sharing: int = 1,
    device: torch.device = CPU,
    shared: SharedBase | None = None,
    source: BaseFiles | None = None,
) -> list[Decision]:
    """Convert the frozen weights of a PEFT model and fuse or compile its layers, in place.

    activations: bytes that training needs besides the weights; `sharing`: ranks of this run on
    this host; shared: how they share the converted weights, `source`: the files that these come
    from. The model is on `device` afterwards, unless backend.name=ipex: then nothing changes,
    because ipex.optimize replaces the linear layers that it finds. Raises EnvironmentProblem for a
    layout that this CPU does not have, UserError for adapters on experts with IPEX.
    """
    if config.backend.name == "ipex":
        if any(isinstance(module, ParamWrapper) for module in model.modules()):
            raise UserError(
                "backend.name=ipex: IPEX replaces the modules of which peft adapts parameters: use "
                "method.target_modules=attention-only, or backend.name=cpu"
            )
        return [Decision("decoder layers", "not fused", str(why_not_own_layers(config)))]
    compiled = compile_layers(model, config)
    prepackable = can_prepack(model.dtype)
    layout, decision = choose_layout(
        config,
        dtype=model.dtype,
        linear_bytes=linear_bytes(model),
        activations=activations,
        available=cpu.available_bytes() / sharing,
        prepackable=prepackable,
        on_gpu=device.type != "cpu",
        shared_by=1 if shared is None else shared.copies_for,
    )
    if shared is not None and not shared.agree(layout != "as loaded", shared_bytes(model, layout)):
        if layout == "prepacked":
            decision = Decision("backend.prepack", "off", "another rank has no room for it")
        layout = "as loaded"
    if layout == "prepacked" and not prepackable:
        raise EnvironmentProblem(f"backend.prepack=true: {_not_prepackable(model.dtype)}")
    gemms: list[Decision] = []
    with _keep(model, layout, shared, source) as keep:
        choice = convert_frozen_weights(model, layout, device, keep)
        if choice is not None:
            gemms.append(choice.decision)
        if choice is not None and choice.own and packs_heads(config, model.dtype):
            gemms += pack_head(model, cpu.available_bytes() / sharing - activations, keep)
        if shared is not None:
            keep_parameters(model, keep)
    if choice is not None and choice.own and own_base(model.dtype) and not config.method.dropout:
        model.get_base_model().row_multiple = packed_attention.ROW_MULTIPLE
    if shared is not None:
        gemms += shared.decisions()
    if config.backend.compile is True:
        return [compiled, decision, *gemms]
    experts = fuse_experts(model)
    return [decision, compiled, fuse(model), *gemms, *([] if experts is None else [experts])]


def _keep(
    model: Any, layout: Layout, shared: SharedBase | None, source: BaseFiles | None
) -> AbstractContextManager[Keep]:
    if shared is None:
        return nullcontext(private)
    return shared.keep(base_facts(model, layout, source), shared_bytes(model, layout))


def shared_by(config: Config, ranks: int, *, on_gpu: bool = False) -> int:
    """Among how many of the `ranks` of a host one copy of the frozen base is shared."""
    backend = config.backend
    shares = backend.share_base != "off" and backend.name != "ipex" and not backend.shard
    return ranks if shares and not on_gpu and not config.method.trains_all else 1


def packs_heads(config: Config, dtype: torch.dtype) -> bool:
    """Whether the head's GEMMs can be our own: not with distillation, which needs its logits."""
    return config.method.name != "distill" and own_base(dtype) is not None


def choose_layout(
    config: Config,
    *,
    dtype: torch.dtype,
    linear_bytes: int,
    activations: int,
    available: float,
    prepackable: bool,
    on_gpu: bool = False,
    shared_by: int = 1,
) -> tuple[Layout, Decision]:
    """How the frozen linear layers keep their weights, decided from the config and sizes alone.

    dtype: of the base; linear_bytes: their weights as loaded; activations: bytes that training
    needs besides the weights; available: free bytes for one rank after loading the weights;
    prepackable: whether oneDNN prepacks `dtype` on the CPU that trains (`can_prepack`);
    shared_by: the ranks of the host that share one copy of the prepacked weights.
    """
    if config.base_dtype != "auto":
        reason = (
            "set in the config" if config.model.base_dtype != "auto" else "method.name is qlora"
        )
        if config.base_dtype == "nf4":
            reason += "; its scales are quantized as well"
        if config.base_dtype == "int4":
            reason += "; the weights that export --adapter writes"
        return config.base_dtype, Decision("model.base_dtype", config.base_dtype, reason)
    if on_gpu:
        return "as loaded", Decision("model.base_dtype", _name(dtype), "as loaded")
    size = f"the prepacked weights take {2 * linear_bytes / cpu.GIB:.1f} GiB"
    fits = 2 * linear_bytes / shared_by + activations <= available / 2
    why_not = _why_not_prepacked(config, dtype, prepackable)
    if why_not is None and config.backend.prepack == "auto" and not fits:
        why_not = f"{size}, which with the activations is over half of the free memory"
    if why_not is not None:
        return "as loaded", Decision("backend.prepack", "off", why_not)
    reason = f"GEMMs are faster, and {size}, for which there is room"
    if config.backend.prepack is True:
        reason = "set in the config"
    return "prepacked", Decision("backend.prepack", "on", reason)


def _why_not_prepacked(config: Config, dtype: torch.dtype, prepackable: bool) -> str | None:
    """The reason that does not depend on memory, or None."""
    if config.method.trains_all:
        return "all weights train"
    if (reason := why_not_own_layers(config)) is not None:
        return reason
    if config.method.use_dora:
        return "DoRA needs unmodified weights"
    if not prepackable and config.backend.prepack is not True:
        return _not_prepackable(dtype)
    return "set in the config" if config.backend.prepack is False else None


def _not_prepackable(dtype: torch.dtype) -> str:
    return f"oneDNN cannot prepack {_name(dtype)} weights on this CPU"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def why_not_own_layers(config: Config) -> str | None:
    """Why the config leaves the decoder layers to IPEX, torch.compile or FSDP2, or None."""
    if config.backend.name == "ipex":
        return "IPEX replaces their linear layers"
    if config.backend.shard:
        return "their weights are sharded"
    return "torch.compile compiles them" if config.backend.compile is True else None


def why_not_fused(model: Any, config: Config) -> str | None:
    """Why training with `config` will not fuse the decoder layers of `model`, or None.

    `model` may be on torch's meta device: this reads its structure only. A run also tries each
    layer both ways.
    """
    if config.method.trains_all:
        return "all of their weights train"
    return why_not_own_layers(config) or why_not_fusable(model)


def compile_layers(model: Any, config: Config) -> Decision:
    """With backend.compile=true, compile each decoder layer by torch.compile at its first call.

    The compiled layers take rows of any length.
    """
    name, chosen = "backend.compile", config.backend.compile
    if chosen is not True:
        measured = "slower in our measurements (docs/ipex.md)"
        return Decision(name, "off", measured if chosen == "auto" else "set in the config")
    # Compiled, its loop over segments would be recompiled for each number of them.
    uncompiled = torch.compiler.disable(packed_attention.packed_attention)  # type: ignore[no-untyped-call]
    AttentionInterface.register(packed_attention.NAME, uncompiled)
    decoder = model.get_decoder()
    layers = list(getattr(decoder, "layers", [decoder]))
    for layer in layers:
        layer.compile(dynamic=True)
    return Decision(name, "on", f"set in the config: {len(layers)} parts, each at its first call")
