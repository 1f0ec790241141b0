"""Which of the native fast paths a model takes: the only place that decides it; called from
training.setup and insight.
"""

from typing import Any

import torch
from transformers import AttentionInterface

from intel_ft.config import Config
from intel_ft.decisions import Decision
from intel_ft.host.devices import CPU
from intel_ft.models import packed_attention
from intel_ft.models.adapter import fuse
from intel_ft.models.frozen_base import convert_frozen_weights


def apply_fast_path(
    model: Any, config: Config, activations: int, sharing: int = 1, device: torch.device = CPU
) -> list[Decision]:
    """Lay out the frozen weights of a PEFT model and fuse or compile its layers, in place.

    With backend.name=ipex nothing: ipex.optimize replaces the linear layers that it finds. See
    models.frozen.convert_frozen_weights for the other arguments and what is raised.
    """
    if config.backend.name == "ipex":
        return [Decision("decoder layers", "the model's own", str(left_to_others(config)))]
    compiled = compile_layers(model, config)
    if config.backend.compile is True:
        return [
            compiled,
            Decision("backend.prepack", "off", "torch.compile lays weights out itself"),
        ]
    return [
        convert_frozen_weights(model, config, activations, sharing, device),
        compiled,
        fuse(model),
    ]


def left_to_others(config: Config) -> str | None:
    """Why none of our fast paths computes the layers, where backend settings say that others do."""
    if config.backend.name == "ipex":
        return "their linear layers become IPEX's"
    return "torch.compile compiles them" if config.backend.compile is True else None


def compile_layers(model: Any, config: Config) -> Decision:
    """With backend.compile=true have torch.compile compile each decoder layer when it first runs,
    for rows of any length.
    """
    name, chosen = "backend.compile", config.backend.compile
    if chosen is not True:
        measured = "slower where it was measured (docs/ipex.md)"
        return Decision(name, "off", measured if chosen == "auto" else "set in the config")
    # Its loop over segments would be compiled anew for each number of them.
    whole = torch.compiler.disable(packed_attention.packed_attention)  # type: ignore[no-untyped-call]
    AttentionInterface.register(packed_attention.NAME, whole)
    decoder = model.get_decoder()
    layers = list(getattr(decoder, "layers", [decoder]))
    for layer in layers:
        layer.compile(dynamic=True)
    return Decision(name, "on", f"set in the config: {len(layers)} parts, when they first run")
