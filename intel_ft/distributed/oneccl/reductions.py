"""Which dtypes and operations oneCCL reduces by itself, and what the others are converted to.

oneCCL truncates sums of bfloat16 where the CPU lacks avx512_bf16, and whether its MIN and MAX keep
a NaN depends on the order of the ranks. So float16 and bfloat16 are reduced in float32 and rounded
once, and the MIN and MAX of floats are those of integers that are ordered as the floats are.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributed import ReduceOp

TYPES = {
    torch.int8: 0,
    torch.uint8: 1,
    torch.int32: 2,
    torch.int64: 4,
    torch.float32: 7,
    torch.float64: 8,
}
_OPERATIONS = {ReduceOp.SUM: 0, ReduceOp.PRODUCT: 1, ReduceOp.MAX: 2, ReduceOp.MIN: 3}
BITWISE = {
    ReduceOp.BAND: torch.bitwise_and,
    ReduceOp.BOR: torch.bitwise_or,
    ReduceOp.BXOR: torch.bitwise_xor,
}
_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


def operation_of(opts: Any) -> Any:
    """The reduction in c10d's options; raises NotImplementedError if there is none for it."""
    operation = ReduceOp.SUM if opts is None else opts.reduceOp
    for candidate in (*_OPERATIONS, *BITWISE, ReduceOp.AVG):
        if operation == candidate:
            return candidate
    raise NotImplementedError(f"ccl has no reduction {operation}")


def require_reducible(tensor: Tensor, operation: Any) -> None:
    """Raise NotImplementedError unless this dtype can be reduced with this operation."""
    if operation == ReduceOp.SUM:
        return
    exact = not (tensor.is_floating_point() or tensor.is_complex())
    if operation == ReduceOp.AVG:
        possible = not exact
    elif operation in BITWISE:
        possible = exact
    elif operation in (ReduceOp.MIN, ReduceOp.MAX):
        possible = not tensor.is_complex() and tensor.dtype != torch.uint64
    else:
        possible = not tensor.is_complex()
    if not possible:
        raise NotImplementedError(f"ccl cannot reduce {tensor.dtype} with {operation}")


def to_reducible(tensor: Tensor, operation: Any) -> tuple[Tensor, int]:
    """The tensor in a dtype that oneCCL reduces exactly, contiguous, and oneCCL's operation.

    It is the tensor itself where that needs no conversion.
    """
    number = _OPERATIONS[ReduceOp.SUM if operation == ReduceOp.AVG else operation]
    flat = tensor.detach()
    if flat.dtype == torch.bool:
        if operation == ReduceOp.SUM:
            number = _OPERATIONS[ReduceOp.MAX]  # or; a sum of bytes would overflow
        return flat.contiguous().view(torch.uint8), number
    if flat.is_complex():
        flat = torch.view_as_real(flat.resolve_conj())
    if flat.dtype not in TYPES:
        flat = flat.to(torch.float32 if flat.is_floating_point() else torch.int64)
    if operation in (ReduceOp.MIN, ReduceOp.MAX) and flat.is_floating_point():
        flat = _ordered_integers(flat, nan_is_largest=operation == ReduceOp.MAX)
    return flat.contiguous(), number


def write_reduced(flat: Tensor, tensor: Tensor, operation: Any, ranks: int) -> None:
    """Write what `to_reducible` made of a tensor, reduced over so many ranks, to the tensor."""
    if operation in (ReduceOp.MIN, ReduceOp.MAX) and tensor.is_floating_point():
        flat = _floats(flat)
    if operation == ReduceOp.AVG:
        flat.div_(ranks)
    if flat.data_ptr() == tensor.data_ptr():
        return
    if tensor.is_complex():
        flat = torch.view_as_complex(flat.view(-1, 2))
    elif tensor.dtype == torch.bool:
        flat = flat.view(torch.bool)
    tensor.copy_(flat.view(tensor.shape))


def _ordered_integers(floats: Tensor, *, nan_is_largest: bool) -> Tensor:
    """Integers that compare as the floats do; a NaN is the largest or the smallest one."""
    bits = floats.contiguous().view(_INTEGERS[floats.dtype])
    limits = torch.iinfo(bits.dtype)
    ordered = torch.where(bits < 0, bits ^ limits.max, bits)
    nan = limits.max if nan_is_largest else limits.min
    return torch.where(floats.isnan(), nan, ordered)


def _floats(ordered: Tensor) -> Tensor:
    """Undo `_ordered_integers`."""
    bits = torch.where(ordered < 0, ordered ^ torch.iinfo(ordered.dtype).max, ordered)
    return bits.view({integer: float_ for float_, integer in _INTEGERS.items()}[ordered.dtype])
