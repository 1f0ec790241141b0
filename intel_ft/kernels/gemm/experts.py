"""Products on AMX in int8 over rows that are sorted by expert, each expert with its own matrix.

expert_product.cpp describes the layout. All functions need `why_no_tiles() is None`.
"""

import ctypes

import torch
from torch import Tensor

from intel_ft.kernels.gemm.library import call

SIZE_MULTIPLE = 64
"""Both sizes of an expert's matrix are multiples of this, the depth of a tile in int8."""


class _Product(ctypes.Structure):
    """ExpertProduct of expert_product.cpp."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in ("experts", "columns", "inner", "rank", "backward", "low_by_column")
        ),
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("bounds", "x", "row_scales", "w", "column_scales"),
                *("low_x", "low_w", "out"),
            )
        ),
    ]


def in_tiles(values: Tensor) -> Tensor:
    """values int8 [outputs, inputs] in the order of tiles, the same shape."""
    outputs, inputs = values.shape
    panels = values.view(outputs // 32, 2, 16, inputs // 64, 16, 4)
    return panels.permute(0, 3, 1, 4, 2, 5).reshape(outputs, inputs)


class _Pass(ctypes.Structure):
    """ExpertPass of expert_pass.cpp."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in ("experts", "inner", "rank", "by_column", "gated", "count")
        ),
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("bounds", "tokens", "x", "columns", "narrow"),
                *("out", "scales", "products"),
            )
        ),
    ]


def rows_pass(
    x: Tensor,
    bounds: Tensor,
    *,
    tokens: Tensor | None = None,
    gated: bool = False,
    columns: Tensor | None = None,
    narrow: Tensor | None = None,
) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
    """Rows in int8 in tiles of 16 with one scale for each, and their narrow products in bf16.

    The rows [rows, size] are bf16 x, or x [count, size] at tokens int64 [rows] (zeros at `count`),
    or silu(gate) * up of x [rows, 2 size]. bounds int64 [experts + 1], multiples of 16; columns
    float32 [experts, size], by which each expert's rows are multiplied before they are rounded;
    narrow [experts, rank, size], of which one matrix or its transpose is contiguous. Returns int8
    [rows, size], the scales, and the products [rows, rank] of the rows as they are with the
    transposed narrow matrices. Raises ValueError for operands that do not fit each other.
    """
    count, size = len(bounds) - 1, x.shape[1] // (2 if gated else 1)
    rows = len(x if tokens is None else tokens)
    if size % SIZE_MULTIPLE or (columns is not None and columns.shape != (count, size)):
        raise ValueError(f"rows {tuple(x.shape)} do not fit int8 tiles or their experts' columns")
    out, scales = torch.empty(rows, size, dtype=torch.int8), torch.empty(rows)
    work = _Pass(count, size, 0, 1, int(gated), len(x))
    tensors = {"bounds": bounds, "tokens": tokens, "x": x.contiguous(), "columns": columns}
    products = None
    if narrow is not None:
        work.rank, work.by_column = _low_rank(narrow, count, size)
        products = torch.empty(rows, work.rank, dtype=torch.bfloat16)
        tensors |= {"narrow": narrow, "products": products}
    _set(work, tensors | {"out": out, "scales": scales})
    call("expert_pass", ctypes.byref(work))
    return (out, scales), products


def _low_rank(factor: Tensor, experts: int, rank_of: int) -> tuple[int, int]:
    """The rank of [experts, rank, size] and whether each matrix is contiguous, not its transpose.

    Raises ValueError if the kernels do not take it.
    """
    rank = factor.shape[1]
    contiguous = factor.is_contiguous() or factor.mT.is_contiguous()
    if not contiguous or factor.shape != (experts, rank, rank_of) or rank % 32:
        raise ValueError(
            f"a low-rank factor {tuple(factor.shape)} does not fit {experts} matrices of "
            f"{rank_of} columns, or its rank is not a multiple of 32"
        )
    return rank, int(factor.is_contiguous())


def _set(work: ctypes.Structure, tensors: dict[str, Tensor | None]) -> None:
    for name, tensor in tensors.items():
        setattr(work, name, None if tensor is None else tensor.data_ptr())


def multiply(
    x: tuple[Tensor, Tensor],
    weight: Tensor,
    bounds: Tensor,
    *,
    scales: Tensor | None = None,
    backward: bool = False,
    low_rank: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """x times each row's matrix, transposed, or with `backward` the matrix itself; bf16.

    x: from `rows_pass`; weight [experts, outputs, inputs], each matrix from `in_tiles`; scales
    [experts, columns of the result]; low_rank: left [rows, rank] and right [experts, columns,
    rank], bf16, of which one matrix or its transpose is contiguous, whose product left right^T is
    added. Raises ValueError for operands that do not fit each other.
    """
    rows, row_scales = x
    experts, outputs, inputs = weight.shape
    columns, inner = (inputs, outputs) if backward else (outputs, inputs)
    if rows.shape[1] != inner or len(bounds) != experts + 1:
        raise ValueError(f"rows {tuple(rows.shape)} do not fit matrices {tuple(weight.shape)}")
    out = torch.empty(len(rows), columns, dtype=torch.bfloat16)
    product = _Product(experts, columns, inner, 0, int(backward), 1)
    tensors = {
        "bounds": bounds,
        "x": rows,
        "row_scales": row_scales,
        "w": weight,
        "column_scales": scales,
        "out": out,
    }
    if low_rank is not None:
        left, right = low_rank
        product.rank, transposed = _low_rank(right.mT, experts, columns)
        product.low_by_column = 1 - transposed
        tensors |= {"low_x": left.contiguous(), "low_w": right}
    _set(product, tensors)
    call("expert_multiply", ctypes.byref(product))
    return out
