"""Int8 products on AVX512-VNNI, with one scale for each row and each column.

vnni_product.cpp describes the layouts. All functions need `why_no_vnni() is None`.
"""

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from intel_ft.kernels.gemm.library import call

_PANEL = 64  # columns of a matrix
_HEIGHT = 6  # rows of x


@dataclass(frozen=True, eq=False)
class Matrix:
    """int8 w [columns, inner] in panels, with its columns' scales and shifts."""

    panels: Tensor
    shifts: Tensor
    scales: Tensor
    columns: int
    inner: int


@dataclass(frozen=True, eq=False)
class Transpose:
    """The transpose of a matrix, read from the same panels, with its own columns' shifts."""

    of: Matrix
    shifts: Tensor
    scales: None = None

    @property
    def columns(self) -> int:
        """As Matrix."""
        return self.of.inner

    @property
    def inner(self) -> int:
        """As Matrix."""
        return self.of.columns


@dataclass(frozen=True, eq=False)
class Rows:
    """x [rows, inner] as uint8 around 128, rows `stride` bytes apart, and its rows' scales."""

    values: Tensor
    scales: Tensor
    rows: int
    inner: int
    dtype: torch.dtype

    @property
    def stride(self) -> int:
        """Bytes from one row to the next."""
        return self.values.shape[1]


def pack(matrix: Tensor, scales: Tensor) -> Matrix:
    """An int8 matrix [columns, inner] of any strides, with float32 scales [columns]."""
    columns, inner = matrix.shape
    size = -(-columns // _PANEL) * _groups(inner) * _PANEL * 4
    panels = torch.empty(size, dtype=torch.int8)
    shifts = torch.empty(columns, dtype=torch.int32)
    address = ctypes.c_void_p(matrix.data_ptr())
    call("vnni_pack", address, columns, inner, *matrix.stride(), panels, shifts)
    return Matrix(panels, shifts, scales, columns, inner)


def transpose_shifts(matrix: Tensor) -> Tensor:
    """The shifts of the `Transpose` of an int8 matrix [columns, inner], int32 [inner]."""
    return 128 * matrix.sum(0, dtype=torch.int32)


def _groups(inner: int) -> int:
    return -(-inner // 64) * 16


def quantize_rows(x: Tensor, columns: Tensor | None = None) -> Rows:
    """bf16 or float32 x [rows, inner] times `columns` float32 [inner], one scale for a row."""
    rows, inner = x.shape
    stride = -(-inner // 64) * 64
    if stride % 256 == 0:  # six rows would share the same few sets of a cache
        stride += 64
    values = torch.empty(-(-rows // _HEIGHT) * _HEIGHT, stride, dtype=torch.uint8)
    scales = torch.empty(rows)
    is_float32 = int(x.dtype == torch.float32)
    sizes = rows, inner, stride
    call("vnni_quantize", x.contiguous(), is_float32, columns, values, scales, *sizes)
    return Rows(values, scales, rows, inner, x.dtype)


class _Product(ctypes.Structure):
    """VnniProduct of vnni_product.cpp."""

    _fields_ = [
        *((n, ctypes.c_int64) for n in ("rows", "columns", "groups", "stride")),
        *((n, ctypes.c_int64) for n in ("is_float32", "transposed")),
        *((n, ctypes.c_void_p) for n in ("x", "w", "shifts", "row_scales", "column_scales")),
        *((n, ctypes.c_void_p) for n in ("bias", "residual", "out")),
    ]


def multiply(
    x: Rows,
    matrix: Matrix | Transpose,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """x times the transposed matrix (+ bias) (+ residual), [rows, columns] in x's dtype.

    Raises ValueError for operands that do not fit each other.
    """
    shape = x.rows, matrix.columns
    if x.inner != matrix.inner:
        raise ValueError(f"{x.rows} rows of {x.inner} times a matrix of {matrix.inner} inputs")
    if residual is not None and (residual.shape != shape or not residual.is_contiguous()):
        raise ValueError(f"not a contiguous tensor of {shape}: {residual.shape}")
    if any(t is not None and t.dtype != x.dtype for t in (bias, residual)):
        raise ValueError(f"bias and residual must be {x.dtype}")
    out = torch.empty(shape, dtype=x.dtype)
    product = _Product(
        rows=x.rows,
        columns=matrix.columns,
        groups=_groups(x.inner),
        stride=x.stride,
        is_float32=x.dtype == torch.float32,
        transposed=isinstance(matrix, Transpose),
    )
    tensors = {
        "x": x.values,
        "w": (matrix.of if isinstance(matrix, Transpose) else matrix).panels,
        "shifts": matrix.shifts,
        "row_scales": x.scales,
        "column_scales": matrix.scales,
        "bias": bias,
        "residual": residual,
        "out": out,
    }
    for name, tensor in tensors.items():
        setattr(product, name, None if tensor is None else tensor.data_ptr())
    call("vnni_multiply", ctypes.byref(product))
    return out
