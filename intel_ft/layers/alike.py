"""Trials of a model whose decoder layers are all of one kind, with the first of them alone.

A trial then reads one layer of the weights' file instead of all. Called from
layers.packed_attention.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def layers_alike(model: Any) -> bool:
    """Whether decoder layers differ in nothing but the numbers in their weights, and their index.

    Compared are classes, settings, and the shapes and dtypes of weights, of all their modules.
    """
    layers = getattr(model.get_decoder(), "layers", None)
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
    if not isinstance(layers, torch.nn.ModuleList) or len(layers) < 2 or len(set(kinds)) > 1:
        return False
    first = _kind(layers[0])
    return all(_kind(layer) == first for layer in layers[1:])


@contextmanager
def first_layer_only(model: Any) -> Iterator[None]:
    """Inside the block the decoder of `model` has its first layer alone."""
    decoder = model.get_decoder()
    layers = decoder.layers
    decoder.layers = layers[:1]
    try:
        yield
    finally:
        decoder.layers = layers


def _kind(layer: torch.nn.Module) -> list[Any]:
    """What the layer is but for its weights' numbers."""
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
