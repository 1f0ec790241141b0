"""Products on AMX tiles, in bf16, or in int8 with one scale for each row and each column.

`Matrix` is a frozen matrix in panels and `Rows` the activations in panels; tile_product.cpp
describes panels and the product, rows_pass.cpp how activations become panels. All functions need
`why_no_tiles() is None`.

An example: y = x W^T + bias + u B^T for x [tokens, in], W [out, in], u [tokens, rank] and B [out,
rank], all in bf16:

    matrix = pack(W)                                  # once
    y = multiply(pack_rows(x), matrix, bias, low_rank=(u, B))
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from intel_ft.host.cpu import cache_bytes
from intel_ft.kernels.build import c_value
from intel_ft.kernels.gemm.library import call

_PANEL = 32  # rows
_STEP = 2048  # bytes of a panel's k-step, 64 of each row
_L2_BYTES = 2 * 2**20  # of every Xeon with AMX; for machines that do not report it


@dataclass(frozen=True, eq=False)
class Matrix:
    """w [columns, inner] in panels; int8 if it has scales, float32 [columns]."""

    panels: Tensor
    columns: int
    inner: int
    scales: Tensor | None = None


@dataclass(frozen=True, eq=False)
class CompressedMatrix:
    """A weight [rows, size] in the codes of an OpenVINO IR, or its transpose.

    Its panels, in bf16, are made for each product. See kernels.ops.dequantize for the fields.
    """

    codes: Tensor
    group_scales: Tensor
    zeros: Tensor | None
    shape: tuple[int, int]
    bits: int
    signed: bool
    transposed: bool
    scales: None = None

    @property
    def columns(self) -> int:
        """As Matrix."""
        return self.shape[1] if self.transposed else self.shape[0]

    @property
    def inner(self) -> int:
        """As Matrix."""
        return self.shape[0] if self.transposed else self.shape[1]


@dataclass(frozen=True, eq=False)
class Rows:
    """x [rows, inner] in panels; int8 if it has scales, float32 [rows]."""

    panels: Tensor
    rows: int
    inner: int
    scales: Tensor | None = None


def pack(matrix: Tensor, scales: Tensor | None = None) -> Matrix:
    """A matrix [columns, inner] of any strides: bf16, or int8 with its columns' scales."""
    columns, inner = matrix.shape
    panels = empty_panels(columns, inner, matrix.element_size())
    is_int8 = int(matrix.dtype == torch.int8)
    address = ctypes.c_void_p(matrix.data_ptr())
    call("pack_w", address, is_int8, columns, inner, *matrix.stride(), panels)
    return Matrix(panels, columns, inner, scales)


class _Weight(ctypes.Structure):
    """CompressedWeight of tile_dequantize.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "size", "group", "bits", "is_signed")),
        *((name, ctypes.c_void_p) for name in ("codes", "scales", "zeros")),
    ]


def dequantize(matrix: CompressedMatrix) -> Matrix:
    """The matrix in bf16: `pack` of what kernels.ops.dequantize returns, or of its transpose."""
    panels = empty_panels(matrix.columns, matrix.inner, 2)
    rows, size = matrix.shape
    group = size // matrix.group_scales.shape[1]
    tensors = (matrix.codes, matrix.group_scales, matrix.zeros)
    addresses = [None if tensor is None else c_value(tensor) for tensor in tensors]
    weight = _Weight(rows, size, group, matrix.bits, int(matrix.signed), *addresses)
    call("dequantize_w", ctypes.byref(weight), int(matrix.transposed), panels)
    return Matrix(panels, matrix.columns, matrix.inner)


@dataclass(frozen=True, eq=False)
class Activations:
    """bf16 activations [rows, inner]: x, or rmsnorm(x) with the weight `norm`, or silu(x) * up."""

    x: Tensor
    norm: Tensor | None = None
    eps: float = 0.0
    up: Tensor | None = None


def bf16_rows(source: Activations, rights: Sequence[Matrix] = ()) -> tuple[Rows, list[Tensor]]:
    """Activations as panels, and their narrow products with bf16 matrices [rank, inner].

    Each product is activations times the transposed matrix, bf16 [rows, rank]. It reads x once.
    """
    rows, inner = source.x.shape
    panels = empty_panels(rows, inner, 2)
    return Rows(panels, rows, inner), rows_pass(source, rights, panels=panels)


def int8_rows(
    source: Activations, rights: Sequence[Matrix] = (), columns: Tensor | None = None
) -> tuple[Rows, list[Tensor]]:
    """The same with panels of int8, one scale for each row of activations * columns [inner].

    The narrow products are those of the activations as they are, without `columns`.
    """
    rows, inner = source.x.shape
    panels, scales = empty_panels(rows, inner, 1), torch.empty(rows)
    narrow = rows_pass(source, rights, columns=columns, panels=panels, scales=scales)
    return Rows(panels, rows, inner, scales), narrow


def pack_rows(x: Tensor) -> Rows:
    """bf16 x [rows, inner] as it is."""
    return bf16_rows(Activations(x))[0]


def quantize_rows(x: Tensor, columns: Tensor | None = None) -> Rows:
    """bf16 x [rows, inner] times `columns` float32 [inner], as int8 with one scale for each row."""
    return int8_rows(Activations(x), columns=columns)[0]


def cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Rows]:
    """See kernels.ops.cross_entropy: the losses, and the gradient in panels; logits stay."""
    rows, size = logits.shape
    losses, panels = torch.empty(rows), empty_panels(rows, size, 2)
    call("cross_entropy_panels", logits, targets, losses, rows, size, panels)
    return losses, Rows(panels, rows, size)


class _RowsPass(ctypes.Structure):
    """RowsPass of rows_pass.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "inner", "narrow")),
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("x", "norm", "up", "columns", "panels", "scales"),
                *("rights", "ranks", "lows"),
            )
        ),
        ("eps", ctypes.c_float),
    ]


def rows_pass(
    source: Activations, rights: Sequence[Matrix], **tensors: Tensor | None
) -> list[Tensor]:
    """Narrow products of a source; `tensors`: further fields of `_RowsPass`, read or written.

    Raises ValueError for operands that do not fit each other.
    """
    rows, inner = source.x.shape
    for right in rights:
        if inner != right.inner:
            raise ValueError(f"{rows} rows of {inner} times a matrix of {right.inner} inputs")
    if source.up is not None and source.up.shape != source.x.shape:
        raise ValueError(f"{rows} rows of {inner} times a tensor of {tuple(source.up.shape)}")
    count = len(rights)
    lows = [torch.empty(rows, right.columns, dtype=torch.bfloat16) for right in rights]
    lists: dict[str, ctypes.Array[Any]] = {
        "rights": (ctypes.c_void_p * count)(*(right.panels.data_ptr() for right in rights)),
        "ranks": (ctypes.c_int64 * count)(*(right.columns for right in rights)),
        "lows": (ctypes.c_void_p * count)(*(low.data_ptr() for low in lows)),
    }
    work = _RowsPass(rows=rows, inner=inner, narrow=count, eps=source.eps)
    inputs = {"x": source.x, "norm": source.norm, "up": source.up}
    kept = {
        name: tensor.contiguous()
        for name, tensor in (inputs | tensors).items()
        if tensor is not None
    }
    for name, tensor in kept.items():
        setattr(work, name, tensor.data_ptr())
    for name, values in lists.items():
        setattr(work, name, ctypes.addressof(values))
    call("rows_pass", ctypes.byref(work))
    return lows


class _Product(ctypes.Structure):
    """TileProduct of tile_product.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "columns", "steps", "rank")),
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("x", "w", "low_w", "low_x", "row_scales", "column_scales"),
                *("bias", "residual", "out"),
            )
        ),
    ]


def multiply(
    x: Rows,
    matrix: Matrix | CompressedMatrix,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    low_rank: tuple[Tensor, Tensor | Matrix] | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """x times the transposed matrix (+ bias) (+ residual) (+ low_rank), bf16 [rows, columns].

    bias [columns] and residual [rows, columns] are bf16; low_rank: bf16 left [rows, rank] and right
    [columns, rank], packed or of any strides, whose product left right^T is added. The sum is
    rounded once, into `out` (a new tensor by default), which may be the residual. Raises ValueError
    for operands that do not fit each other.
    """
    if x.inner != matrix.inner or (x.scales is None) != (matrix.scales is None):
        raise ValueError(f"{x.rows} rows of {x.inner} times a matrix of {matrix.inner} inputs")
    shape = x.rows, matrix.columns
    if out is None:
        out = torch.empty(shape, dtype=torch.bfloat16)
    for tensor in (out, residual):
        if tensor is not None and (tensor.shape != shape or not tensor.is_contiguous()):
            raise ValueError(f"not a contiguous tensor of {shape}: {tensor.shape}")
    is_int8 = x.scales is not None
    panels = matrix.panels if isinstance(matrix, Matrix) else dequantize(matrix).panels
    product = _Product(rows=x.rows, columns=matrix.columns, steps=_steps(x.inner, 2 - is_int8))
    tensors = {
        "x": x.panels,
        "w": panels,
        "row_scales": x.scales,
        "column_scales": matrix.scales,
        "bias": bias,
        "residual": residual,
        "out": out,
    }
    if low_rank is not None:
        left, right = low_rank
        product.rank = left.shape[1]
        packed = right if isinstance(right, Matrix) else pack(right)
        tensors |= {"low_x": left.contiguous(), "low_w": packed.panels}
    for name, tensor in tensors.items():
        setattr(product, name, None if tensor is None else tensor.data_ptr())
    call("tile_multiply", ctypes.byref(product), int(is_int8), *_blocking())
    return out


def empty_panels(rows: int, inner: int, size: int) -> Tensor:
    """Memory for the panels of a matrix whose elements have `size` bytes."""
    count = -(-rows // _PANEL)
    return torch.empty(count * _steps(inner, size) * _STEP, dtype=torch.uint8)


def _steps(inner: int, size: int) -> int:
    return -(-inner * size // 64)


@cache
def _blocking() -> tuple[int, int, int]:
    """Panels of a block down and across, and k-steps of a chunk (docs/log.md).

    A block's sums, the panels of a chunk of both operands, and w's of the next chunk take three
    quarters of L2.
    """
    rows, columns = 8, 8
    sums = rows * columns * _PANEL * _PANEL * 4
    chunk = (cache_bytes(2) or _L2_BYTES) * 3 // 4 - sums
    return rows, columns, max(8, chunk // ((rows + 2 * columns) * _STEP))
