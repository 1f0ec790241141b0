"""LoRA's narrow products on AMX, in bf16; rows_pass.cpp and narrow_gradient.cpp describe them.

All functions need `why_no_tiles() is None`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from intel_ft.kernels.gemm.library import call
from intel_ft.kernels.gemm.tiles import Matrix, Source, empty_panels, rows_pass

_TILE = 1024  # bytes


@dataclass(frozen=True, eq=False)
class LoraPanels:
    """A LoRA pair A [rank, in] and B [out, rank], the scale in B, for products with their rows.

    multiply(x, a) is x A^T, multiply(g, b_transposed) is g B; b and a_transposed are the right
    operands of `tiles.multiply`'s low_rank, forward and backward.
    """

    a: Matrix
    a_transposed: Matrix
    b: Matrix
    b_transposed: Matrix


def pack_lora(a: Tensor, b: Tensor, scale: float) -> LoraPanels:
    """Float32 a [rank, in] and scale * b [out, rank], rounded to bf16."""
    (rank, inner), outputs = a.shape, len(b)
    sizes = (rank, inner), (inner, rank), (outputs, rank), (rank, outputs)
    packed = [Matrix(empty_panels(*size, 2), *size) for size in sizes]
    a, b = a.detach().contiguous(), b.detach().contiguous()
    call("pack_lora", a, b, float(scale), rank, inner, outputs, *(m.panels for m in packed))
    return LoraPanels(*packed)


def multiply(x: Tensor, right: Matrix) -> Tensor:
    """bf16 x [rows, inner] times a packed bf16 matrix [rank, inner] transposed: [rows, rank].

    Raises ValueError for operands that do not fit each other.
    """
    [product] = rows_pass(Source(x), [right])
    return product


def gradient(left: Tensor, x: Tensor, scale: float = 1.0, *, transposed: bool = False) -> Tensor:
    """scale * left^T x for bf16 left [rows, rank] and x [rows, columns]: float32 [rank, columns].

    [columns, rank] if transposed. Raises ValueError for operands that do not fit each other.
    """
    (rows, rank), columns = left.shape, x.shape[1]
    if rows != len(x):
        raise ValueError(f"{rows} rows times {len(x)} rows")
    out = torch.empty((columns, rank) if transposed else (rank, columns))
    if not rows:
        return out.zero_()
    tiles = torch.empty(-(-rank // 16) * -(-rows // 32) * _TILE, dtype=torch.uint8)
    strides = (1, rank) if transposed else (columns, 1)
    sizes = rows, rank, columns, float(scale)
    call("narrow_gradient", left.contiguous(), x.contiguous(), *sizes, tiles, out, *strides)
    return out
