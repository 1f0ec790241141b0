"""Converts a base to int8 or NF4 while it is loaded, so that it is never whole in bf16.

Transformers hands each weight to a quantizer as soon as it has read and stacked it. This one
collects those of a linear layer or of a layer's experts, and converts the module when it has them
all: what is in memory at once as it was published is one layer's experts.
"""

from collections import Counter
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from intel_ft.config import Config
from intel_ft.config_method import CHANGES_BASE
from intel_ft.host.allocator import FreedMemory
from intel_ft.host.devices import CPU
from intel_ft.layers.fused_experts import convert_module, expert_modules, fuse_experts
from intel_ft.models.fast_path import shared_by
from intel_ft.models.frozen_base import (
    STREAMED,
    Conversion,
    FrozenLinear,
    conversion_to,
    converted,
    frozen_linears,
)
from intel_ft.models.load import StreamedLayout

_NAME = "intel_ft_streamed"


def streamed_layout(
    config: Config, local_ranks: int = 1, *, on_gpu: bool = False
) -> StreamedLayout | None:
    """What the base is converted to while it is loaded, if nothing needs the weights as they were.

    local_ranks: ranks of a host. On a GPU, and where ranks or runs share the converted weights,
    they are converted afterwards.
    """
    method, model, layout = config.method, config.model, config.base_dtype
    needs_weights = (
        method.trains_all
        or method.use_dora
        or method.init in CHANGES_BASE
        or bool(method.modules_to_save)
        or model.merged_adapter is not None
        or config.backend.name == "ipex"
        or config.backend.shard
    )
    shared = shared_by(config, local_ranks) > 1 or config.backend.share_base == "cache"
    if layout not in ("int8", "nf4") or needs_weights or shared or on_gpu:
        return None
    return layout


class StreamedConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """What `from_pretrained` takes as its quantization_config; layout: int8 or nf4."""

    def __init__(self, layout: StreamedLayout) -> None:
        super().__init__(quant_method=_NAME)
        self.layout = layout


@register_quantizer(_NAME)
class Streamed(HfQuantizer):  # type: ignore[misc]
    """See above. It leaves a model that looks as if it had been converted after loading."""

    quantization_config: StreamedConfig
    is_trainable = True
    modules: dict[str, Any]

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
        model.requires_grad_(False)
        linears = frozen_linears(model)
        self.shapes = Counter(tuple(linear.weight.shape) for _, _, linear in linears)
        self.dtype = model.dtype
        self.freed = FreedMemory()
        wanted: dict[int, Any] = {id(linear): (parent, child) for parent, child, linear in linears}
        wanted |= {id(part.module): part for part in expert_modules(model)}
        self.modules = {
            name: wanted[id(module)]
            for name, module in model.named_modules()
            if id(module) in wanted
        }

    @cached_property
    def conversion(self) -> Conversion:
        """Chosen at the first weight: before, torch's default device is `meta`."""
        return conversion_to(self.quantization_config.layout, self.shapes, self.dtype)

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> None:
        self.remove_quantization_config(model)
        fuse_experts(model)
        setattr(model, STREAMED, self.conversion.choice)

    def param_needs_quantization(self, model: Any, param_name: str, **_: Any) -> bool:
        """Whether it is a weight or a bias of a module that is converted."""
        return param_name.rpartition(".")[0] in self.modules

    def get_quantize_ops(self) -> ConversionOps:
        """What is done with each of them."""
        return _Collect(self)

    def is_serializable(self) -> bool:
        """The converted weights cannot be saved."""
        return False


class _Collect(ConversionOps):  # type: ignore[misc]
    """Puts a weight into its module, and converts the module once it has all of them."""

    def __init__(self, quantizer: Streamed) -> None:
        self.quantizer = quantizer

    @torch.no_grad()
    def convert(
        self,
        input_dict: dict[str, Any],
        *,
        model: Any,
        missing_keys: set[str] | None = None,
        full_layer_name: str,
        **_: Any,
    ) -> dict[str, Tensor]:
        """Weights by name; returns those that are left to set."""
        for given, value in input_dict.items():
            name = full_layer_name if len(input_dict) == 1 else given
            owner, parameter = name.rsplit(".", 1)
            module = model.get_submodule(owner)
            tensor = value[0] if isinstance(value, list) else value
            setattr(module, parameter, torch.nn.Parameter(tensor, requires_grad=False))
            (missing_keys if missing_keys is not None else set()).discard(name)
            if not any(weight.is_meta for weight in module.parameters(recurse=False)):
                self._convert_module(owner, module)
            self.quantizer.freed.converted(tensor.nbytes)
        return {}

    def _convert_module(self, name: str, module: Any) -> None:
        conversion, place = self.quantizer.conversion, self.quantizer.modules[name]
        if isinstance(module, torch.nn.Linear):
            parent, child = place
            base = converted(module, conversion.factory)
            module = FrozenLinear(module, base, CPU)
            setattr(parent, child, module)
        else:
            convert_module(place, conversion.experts, conversion.stacked)
        for weight in module.parameters(recurse=False):
            weight._is_hf_initialized = True  # else Transformers initializes it
