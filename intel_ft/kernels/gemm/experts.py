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


def quantize_rows(
    x: Tensor, bounds: Tensor, columns: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """bf16 x [rows, size] times the `columns` of each row's expert, in int8 in tiles of 16 rows.

    columns float32 [experts, size]; bounds int64 [experts + 1], multiples of 16. Returns int8
    [rows, size] and one scale for each row. Raises ValueError for rows of another size.
    """
    if x.shape[1] % SIZE_MULTIPLE or (columns is not None and columns.shape[1] != x.shape[1]):
        raise ValueError(f"rows {tuple(x.shape)} do not fit int8 tiles or their experts' columns")
    out, scales = torch.empty(x.shape, dtype=torch.int8), torch.empty(len(x))
    call("expert_quantize", x, columns, bounds, len(bounds) - 1, x.shape[1], out, scales)
    return out, scales


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

    x: from `quantize_rows`; weight [experts, outputs, inputs], each matrix from `in_tiles`; scales
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
        product.rank, product.low_by_column = left.shape[1], int(right.is_contiguous())
        contiguous = right.is_contiguous() or right.mT.is_contiguous()
        if not contiguous or right.shape != (experts, columns, product.rank) or product.rank % 32:
            raise ValueError(
                f"a low-rank factor {tuple(right.shape)} does not fit {experts} matrices of "
                f"{columns} columns, or its rank is not a multiple of 32"
            )
        tensors |= {"low_x": left.contiguous(), "low_w": right}
    for name, tensor in tensors.items():
        setattr(product, name, None if tensor is None else tensor.data_ptr())
    call("expert_multiply", ctypes.byref(product))
    return out
