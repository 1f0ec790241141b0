"""Trials of a model with its first decoder layer alone, where all its decoder layers are alike.

Such a trial reads the weights of one layer instead of all. Called from layers.packed_attention and
layers.fused_decoder.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def layers_alike(model: Any) -> bool:
    """Whether the decoder layers differ only in the values of their weights and in their index.

    It compares the classes and settings of all their modules, and the shapes and dtypes of weights.
    """
    layers = getattr(model.get_decoder(), "layers", None)
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
    if not isinstance(layers, torch.nn.ModuleList) or len(layers) < 2 or len(set(kinds)) > 1:
        return False
    first = _kind(layers[0])
    return all(_kind(layer) == first for layer in layers[1:])


@contextmanager
def first_layer_only(model: Any) -> Iterator[None]:
    """Inside the block, the decoder of `model` has only its first layer."""
    decoder = model.get_decoder()
    layers = decoder.layers
    decoder.layers = layers[:1]
    try:
        yield
    finally:
        decoder.layers = layers


def _kind(layer: torch.nn.Module) -> list[Any]:
    """The layer's modules with their classes and settings, and shapes and dtypes of weights."""
    return [
        (
            name,
            type(module),
            [(key, p.shape, p.dtype) for key, p in module.named_parameters(recurse=False)],
            {
                key: value
                for key, value in vars(module).items()
                if key != "layer_idx" and isinstance(value, bool | int | float | str | None)
            },
        )
        for name, module in layer.named_modules()
    ]
