"""What is wrong with the tensors of a call, found before oneCCL reads or writes past their ends.

What one rank can see is checked for every call. Whether the ranks agree is checked with
TORCH_DISTRIBUTED_DEBUG=DETAIL, as in torch's own backends.
"""

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

_TEXT, _DIGEST = 440, 64
TEXT_BYTES = _TEXT + _DIGEST


def require_dense(tensors: Iterable[Tensor]) -> None:
    """Raise ValueError for a tensor that is sparse or not in the CPU's memory."""
    for tensor in tensors:
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise ValueError(
                f"ccl works on dense CPU tensors, not on {tensor.layout} on {tensor.device}"
            )


def require_alike(call: str, tensors: Sequence[Tensor], like: Tensor) -> None:
    """Raise ValueError unless all tensors have the dtype and the number of elements of `like`."""
    for tensor in tensors:
        if tensor.dtype != like.dtype or tensor.numel() != like.numel():
            raise ValueError(f"{call}: a part is {_of(tensor)}, but it must be {_of(like)}")


def require_dtype(call: str, tensors: Iterable[Tensor], like: Tensor) -> None:
    """Raise ValueError unless all tensors have the dtype of `like`."""
    for tensor in tensors:
        if tensor.dtype != like.dtype:
            raise ValueError(f"{call}: {tensor.dtype} and {like.dtype}; all must be the same")


def require_length(call: str, parts: Sequence[object], count: int, what: str = "ranks") -> None:
    """Raise ValueError unless a list has one entry for each of what is counted."""
    if len(parts) != count:
        raise ValueError(f"{call}: {len(parts)} parts for {count} {what}")


def require_parts(call: str, whole: Tensor, part: Tensor, ranks: int) -> None:
    """Raise ValueError unless `whole` is as large as one `part` per rank, and of its dtype."""
    if whole.dtype != part.dtype or whole.numel() != part.numel() * ranks:
        raise ValueError(f"{call}: {_of(whole)} is not {ranks} times {_of(part)}, one per rank")


def split(call: str, tensor: Tensor, sizes: list[int], ranks: int) -> Sequence[Tensor]:
    """The part of each rank along the first dimension; empty sizes mean equal sizes."""
    rows = tensor.size(0) if tensor.dim() else 0
    if not sizes:
        if rows % ranks:
            raise ValueError(f"{call}: {rows} rows cannot be split evenly over {ranks} ranks")
        sizes = [rows // ranks] * ranks
    require_length(call, sizes, ranks)
    if sum(sizes) != rows:
        raise ValueError(f"{call}: the sizes {sizes} do not add up to the {rows} rows")
    return tensor.split_with_sizes(sizes)


def _of(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


def described(call: str, arguments: Iterable[object]) -> str:
    """The call with what must be the same on all ranks: values, and tensors' dtypes and shapes."""

    def text(value: object) -> str:
        if isinstance(value, Tensor):
            return _of(value)
        if isinstance(value, list | tuple):
            return "[" + ", ".join(text(item) for item in value) + "]"
        return str(value)

    return f"{call}({', '.join(text(argument) for argument in arguments)})"


def to_row(text: str) -> Tensor:
    """A text as TEXT_BYTES bytes, which differ where texts do."""
    data = hashlib.sha256(text.encode()).hexdigest().encode() + text.encode()[:_TEXT]
    return torch.frombuffer(bytearray(data.ljust(TEXT_BYTES)), dtype=torch.uint8)


def require_equal_rows(rows: Tensor) -> None:
    """Raise RuntimeError with the first two ranks' calls that differ; rows [ranks, TEXT_BYTES]."""
    for rank, row in enumerate(rows[1:], start=1):
        if not torch.equal(row, rows[0]):
            first, other = (
                bytes(one[_DIGEST:].tolist()).decode(errors="replace").rstrip()
                for one in (rows[0], row)
            )
            raise RuntimeError(
                f"the ranks' calls differ: rank 0 of the group calls {first}, rank {rank} {other}"
            )
