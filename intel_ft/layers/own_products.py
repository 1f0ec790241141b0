"""Frozen weights for the products of kernels.gemm.

On AMX they are packed once for forward and once for backward, which takes as much memory as
layers.prepacked (bf16) and layers.int8. On AVX512-VNNI both directions read one copy. They compute
the same numbers with fewer roundings. Weights of layers.compressed are packed for each product.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import ref

import torch
from torch import Tensor

from intel_ft.kernels.gemm import tiles, vnni
from intel_ft.kernels.gemm.library import why_no_tiles, why_no_vnni
from intel_ft.layers.int8 import int8_values

LowRank = tuple[Tensor, Tensor | tiles.Matrix]
"""left [tokens, rank] and right [outputs, rank], whose product left right^T is added."""

Factory = Callable[[Tensor, Tensor | None], Any]
"""Makes a FrozenWeight of weight [out, in] and bias."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class TileWeight:
    """A FrozenWeight on AMX tiles, in bf16, or in int8 if it has `scales` [out].

    It adds a product of low rank, which is LoRA's, while it sums up its own.
    """

    forward: tiles.Matrix | tiles.CompressedMatrix
    backward: tiles.Matrix | tiles.CompressedMatrix
    bias: Tensor | None
    scales: Tensor | None = None
    dtype: torch.dtype = torch.bfloat16

    def rows(
        self, source: tiles.Activations, rights: Sequence[tiles.Matrix] = ()
    ) -> tuple[tiles.Rows, list[Tensor]]:
        """A layer's input as `multiply` takes it, and its narrow products with `rights`."""
        prepare = tiles.bf16_rows if self.scales is None else tiles.int8_rows
        return prepare(source, rights)

    def multiply(
        self, rows: tiles.Rows, residual: Tensor | None, low_rank: LowRank | None = None
    ) -> Tensor:
        """`linear` of an input that `rows` prepared."""
        residual = None if residual is None else residual.contiguous()
        return tiles.multiply(
            rows, self.forward, bias=self.bias, residual=residual, low_rank=low_rank
        )

    def gradient_rows(
        self, grad: Tensor, rights: Sequence[tiles.Matrix] = ()
    ) -> tuple[tiles.Rows, list[Tensor]]:
        """The gradient of an output as `multiply_gradient` takes it, and its narrow products."""
        source = tiles.Activations(grad)
        if self.scales is None:
            return tiles.bf16_rows(source, rights)
        return tiles.int8_rows(source, rights, columns=self.scales)

    def multiply_gradient(
        self, rows: tiles.Rows, accumulate_into: Tensor | None, low_rank: LowRank | None = None
    ) -> Tensor:
        """`input_gradient` of a gradient that `gradient_rows` prepared."""
        residual = None if accumulate_into is None else accumulate_into.contiguous()
        return tiles.multiply(
            rows, self.backward, residual=residual, low_rank=low_rank, out=residual
        )

    def linear(self, x: Tensor, residual: Tensor | None, low_rank: LowRank | None = None) -> Tensor:
        """See lora_linear.FrozenWeight."""
        rows = _packed_once(x, tiles.pack_rows if self.scales is None else tiles.quantize_rows)
        return self.multiply(rows, residual, low_rank)

    def input_gradient(
        self, grad: Tensor, accumulate_into: Tensor | None, low_rank: LowRank | None = None
    ) -> Tensor:
        """See lora_linear.FrozenWeight."""
        return self.multiply_gradient(self.gradient_rows(grad)[0], accumulate_into, low_rank)


@dataclass(frozen=True, eq=False)
class VnniWeight:
    """A FrozenWeight in int8 on AVX512-VNNI; scales [out]; shifts: of its transpose, [in]."""

    forward: vnni.Matrix
    shifts: Tensor
    bias: Tensor | None
    scales: Tensor
    dtype: torch.dtype

    def linear(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """See lora_linear.FrozenWeight."""
        rows = _packed_once(x, vnni.quantize_rows)
        residual = None if residual is None else residual.contiguous()
        return vnni.multiply(rows, self.forward, bias=self.bias, residual=residual)

    def input_gradient(self, grad: Tensor, accumulate_into: Tensor | None) -> Tensor:
        """See lora_linear.FrozenWeight."""
        residual = None if accumulate_into is None else accumulate_into.contiguous()
        rows = vnni.quantize_rows(grad, self.scales)
        return vnni.multiply(rows, vnni.Transpose(self.forward, self.shifts), residual=residual)


def tile_base(weight: Tensor, bias: Tensor | None) -> TileWeight:
    """A bf16 weight [out, in], which may be freed afterwards."""
    return TileWeight(tiles.pack(weight), tiles.pack(weight.T), bias)


def tile_int8_base(weight: Tensor, bias: Tensor | None) -> TileWeight:
    """weight [out, in] rounded to int8, with one scale per output channel."""
    values, scales = int8_values(weight)
    ones = torch.ones(values.shape[1])
    return TileWeight(tiles.pack(values, scales), tiles.pack(values.T, ones), bias, scales)


def vnni_base(weight: Tensor, bias: Tensor | None) -> VnniWeight:
    """weight [out, in] rounded to int8, with one scale per output channel."""
    values, scales = int8_values(weight)
    shifts = vnni.transpose_shifts(values)
    return VnniWeight(vnni.pack(values, scales), shifts, bias, scales, weight.dtype)


def own_base(dtype: torch.dtype) -> tuple[Factory, str] | None:
    """Our own products for bf16 weights on this CPU and their name, or None."""
    usable = dtype == torch.bfloat16 and why_no_tiles() is None
    return (tile_base, "AMX") if usable else None


def own_int8_base(dtype: torch.dtype) -> tuple[Factory, str] | None:
    """The same for int8 weights, whose activations have `dtype`."""
    if dtype == torch.bfloat16 and why_no_tiles() is None:
        return tile_int8_base, "AMX"
    usable = dtype in (torch.bfloat16, torch.float32) and why_no_vnni() is None
    return (vnni_base, "AVX512-VNNI") if usable else None


def int8_copies(dtype: torch.dtype) -> int:
    """How many copies of a linear layer's int8 weights our own products keep, or else oneDNN."""
    own = own_int8_base(dtype)
    return 1 if own is not None and own[0] is vnni_base else 2


def why_no_own_products(dtype: torch.dtype, *, int8: bool) -> str:
    """The reason for None in `own_base` or `own_int8_base`."""
    if dtype not in (torch.bfloat16, torch.float32) or (dtype == torch.float32 and not int8):
        return f"intel_ft has no GEMMs in {str(dtype).removeprefix('torch.')}"
    reasons = [reason for reason in (why_no_tiles(), why_no_vnni() if int8 else None) if reason]
    return ", ".join(dict.fromkeys(reasons))


_last: tuple[Any, Any, Any] | None = None


def _packed_once(x: Tensor, pack: Callable[[Tensor], T]) -> T:
    """pack(x); the last result is cached, as q, k and v take the same x one after another."""
    global _last  # noqa: PLW0603
    if _last is None or _last[0]() is not x or _last[1] is not pack:
        _last = (ref(x), pack, pack(x))
    packed: T = _last[2]
    return packed
