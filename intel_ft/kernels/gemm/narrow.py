"""LoRA's narrow products on AMX, in bf16; rows_pass.cpp and narrow_gradient.cpp describe them.

All functions need `why_no_tiles() is None`.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from intel_ft.kernels.gemm.library import call
from intel_ft.kernels.gemm.tiles import Activations, Matrix, empty_panels, rows_pass

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


class _Pair(ctypes.Structure):
    """LoraPair of tile_product.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rank", "inner", "outputs")),
        *((name, ctypes.c_void_p) for name in ("a", "b")),
        *((f"to_{name}", ctypes.c_void_p) for name in ("a", "a_transposed", "b", "b_transposed")),
        ("scale", ctypes.c_float),
    ]


def pack_loras(pairs: Sequence[tuple[Tensor, Tensor, float]]) -> list[LoraPanels]:
    """Float32 a [rank, in] and scale * b [out, rank] of each (a, b, scale), rounded to bf16."""
    work, packed, read = (_Pair * len(pairs))(), [], []
    for index, (a, b, scale) in enumerate(pairs):
        (rank, inner), outputs = a.shape, len(b)
        sizes = (rank, inner), (inner, rank), (outputs, rank), (rank, outputs)
        panels = LoraPanels(*(Matrix(empty_panels(*size, 2), *size) for size in sizes))
        packed.append(panels)
        tensors = {"a": a.detach().contiguous(), "b": b.detach().contiguous()}
        tensors |= {f"to_{name}": matrix.panels for name, matrix in vars(panels).items()}
        read.append(tensors)  # until the call is over
        addresses = {name: tensor.data_ptr() for name, tensor in tensors.items()}
        work[index] = _Pair(rank, inner, outputs, scale=scale, **addresses)
    call("pack_loras", ctypes.byref(work), len(pairs))
    return packed


def multiply(x: Tensor, right: Matrix) -> Tensor:
    """bf16 x [rows, inner] times a packed bf16 matrix [rank, inner] transposed: [rows, rank].

    Raises ValueError for operands that do not fit each other.
    """
    [product] = rows_pass(Activations(x), [right])
    return product


class _Gradient(ctypes.Structure):
    """NarrowGradient of narrow_gradient.cpp."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in ("rows", "rank", "columns", "rank_stride", "column_stride")
        ),
        *((name, ctypes.c_void_p) for name in ("left", "x", "tiles", "out")),
        ("scale", ctypes.c_float),
    ]


@dataclass(frozen=True, eq=False)
class Gradient:
    """scale * left^T x for bf16 left [rows, rank] and x [rows, columns]: [rank, columns].

    Its transpose if `transposed`.
    """

    left: Tensor
    x: Tensor
    scale: float = 1.0
    transposed: bool = False


def gradients(wanted: Sequence[Gradient]) -> list[Tensor]:
    """These products in float32, computed in one go.

    Raises ValueError for operands that do not fit each other.
    """
    work, outs, read = (_Gradient * len(wanted))(), [], []
    for index, one in enumerate(wanted):
        (rows, rank), columns = one.left.shape, one.x.shape[1]
        if rows != len(one.x):
            raise ValueError(f"{rows} rows times {len(one.x)} rows")
        shape, strides = (rank, columns), (columns, 1)
        if one.transposed:
            shape, strides = (columns, rank), (1, rank)
        out = torch.zeros(shape) if rows == 0 else torch.empty(shape)
        outs.append(out)
        tensors = {
            "left": one.left.contiguous(),
            "x": one.x.contiguous(),
            "tiles": torch.empty(-(-rank // 16) * -(-rows // 32) * _TILE, dtype=torch.uint8),
            "out": out,
        }
        read.append(tensors)  # until the call is over
        addresses = {name: tensor.data_ptr() for name, tensor in tensors.items()}
        sizes = rows, rank, columns if rows else 0, *strides
        work[index] = _Gradient(*sizes, scale=one.scale, **addresses)
    call("narrow_gradients", ctypes.byref(work), len(wanted))
    return outs
