"""Collectives of one communicator, each done when it returns; called from oneccl.group, always on
the thread of oneccl.calls.

Data that is only moved travels as bytes; what is reduced is converted where oneCCL lacks the type.
"""

from collections.abc import Sequence
from ctypes import byref
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import Store
from torch.distributed import ReduceOp

from intel_ft.distributed.oneccl.library import Handle, UniqueId, library, set_environment

_TYPES = {
    torch.int8: 0,
    torch.uint8: 1,
    torch.int32: 2,
    torch.int64: 4,
    torch.float16: 6,
    torch.float32: 7,
    torch.float64: 8,
    torch.bfloat16: 9,
}
_OPERATIONS = {ReduceOp.SUM: 0, ReduceOp.PRODUCT: 1, ReduceOp.MAX: 2, ReduceOp.MIN: 3}
_BITWISE = {
    ReduceOp.BAND: torch.bitwise_and,
    ReduceOp.BOR: torch.bitwise_or,
    ReduceOp.BXOR: torch.bitwise_xor,
}


class Communicator:
    """The ranks of a group. Tensors have any dtype and layout."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size
        self._handle = Handle()

    def connect(self, store: Store) -> None:
        """Find the other ranks through the store."""
        set_environment()
        identity = UniqueId()
        if self.rank == 0:
            library().call("GetUniqueId", byref(identity))
            store.set("oneccl", bytes(identity).hex())
        else:
            identity = UniqueId.from_buffer_copy(bytes.fromhex(store.get("oneccl").decode()))
        library().call("CommInitRank", byref(self._handle), self.size, identity, self.rank)

    def leave(self, *, last: bool) -> None:
        """Leave, and end MPI after the last one."""
        library().call("CommFinalize", self._handle)
        library().call("CommDestroy", self._handle)
        if last:
            library().finalize_mpi()

    def _call(self, name: str, source: Tensor, target: Tensor, count: int, *more: int) -> None:
        if count:
            pointers = source.data_ptr(), target.data_ptr()
            rest = (count, _TYPES[source.dtype], *more, self._handle, None)
            library().call(name, *pointers, *rest)

    def all_reduce(self, tensor: Tensor, operation: Any) -> None:
        """The tensor, reduced over all ranks, in place."""
        if operation in _BITWISE:
            whole = tensor.new_empty((self.size, *tensor.shape))
            self.all_gather_into(whole, tensor)
            tensor.copy_(whole[0])
            for part in whole[1:]:
                tensor.copy_(_BITWISE[operation](tensor, part))
            return
        flat, number = _reducible(tensor, operation)
        self._call("AllReduce", flat, flat, flat.numel(), number)
        self._finish(tensor, flat, operation)

    def reduce(self, tensor: Tensor, operation: Any, root: int) -> None:
        """As all_reduce; only the root has the result."""
        if operation in _BITWISE:
            self.all_reduce(tensor, operation)
            return
        flat, number = _reducible(tensor, operation)
        self._call("Reduce", flat, flat, flat.numel(), number, root)
        self._finish(tensor, flat, operation)

    def reduce_scatter(self, output: Tensor, whole: Tensor, operation: Any) -> None:
        """output becomes this rank's part of the reduction of whole, `size` times as large."""
        if operation in _BITWISE:
            reduced = whole.clone()
            self.all_reduce(reduced, operation)
            output.copy_(reduced.view(self.size, *output.shape)[self.rank])
            return
        flat, number = _reducible(whole, operation)
        part = flat.new_empty(flat.numel() // self.size)
        self._call("ReduceScatter", flat, part, part.numel(), number)
        self._finish(output, part, operation)

    def _finish(self, tensor: Tensor, flat: Tensor, operation: Any) -> None:
        """Put a reduction where it belongs."""
        if operation == ReduceOp.AVG:
            flat.div_(self.size)
        if flat.data_ptr() != tensor.data_ptr():
            tensor.copy_(_as_reduced(flat, tensor))

    def broadcast(self, tensor: Tensor, root: int) -> None:
        """The root's tensor, everywhere."""
        flat = _bytes(tensor)
        self._call("Broadcast", flat, flat, flat.numel(), root)
        if flat.data_ptr() != tensor.data_ptr():
            tensor.copy_(flat.view(tensor.dtype).view(tensor.shape))

    def all_gather_into(self, output: Tensor, own: Tensor) -> None:
        """output becomes all ranks' own, in order of rank."""
        flat = _bytes(own)
        whole = _bytes(output)
        self._call("AllGather", flat, whole, flat.numel())
        if whole.data_ptr() != output.data_ptr():
            output.copy_(whole.view(output.dtype).view(output.shape))

    def all_gather(self, parts: list[Tensor], own: Tensor) -> None:
        """parts[rank] becomes that rank's own; sizes may differ."""
        if len({part.numel() for part in parts}) > 1:
            for rank, part in enumerate(parts):
                if rank == self.rank:
                    part.copy_(own)
                self.broadcast(part, rank)
            return
        whole = own.new_empty((len(parts), *own.shape))
        self.all_gather_into(whole, own)
        for part, found in zip(parts, whole, strict=True):
            part.copy_(found.view(part.shape))

    def all_to_all(self, outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
        """outputs[rank] becomes that rank's inputs[own rank]. Parts are padded to the largest that
        any rank has: oneCCL moves equal ones.
        """
        sizes = [part.numel() * part.element_size() for part in (*inputs, *outputs)]
        largest = torch.tensor([max(sizes)])
        self.all_reduce(largest, ReduceOp.MAX)
        width = int(largest)
        sent = torch.zeros(self.size, width, dtype=torch.uint8)
        for row, part in zip(sent, inputs, strict=True):
            row[: part.numel() * part.element_size()] = _bytes(part)
        received = torch.empty_like(sent)
        self._call("AllToAll", sent, received, width)
        for row, part in zip(received, outputs, strict=True):
            found = row[: part.numel() * part.element_size()].clone()
            part.copy_(found.view(part.dtype).view(part.shape))


def _bytes(tensor: Tensor) -> Tensor:
    """Its elements as bytes [n], without a copy where it is contiguous."""
    return tensor.contiguous().view(-1).view(torch.uint8)


def _reducible(tensor: Tensor, operation: Any) -> tuple[Tensor, int]:
    """The tensor flat and in a dtype that oneCCL reduces, and the number of the operation."""
    number = _OPERATIONS[ReduceOp.SUM if operation == ReduceOp.AVG else operation]
    if tensor.dtype in _TYPES and operation != ReduceOp.AVG and tensor.is_contiguous():
        return tensor, number  # as it is, without the microseconds of what follows
    flat = tensor.detach().contiguous().view(-1)
    if flat.dtype == torch.bool:
        if operation == ReduceOp.AVG:
            raise NotImplementedError("oneCCL: no average of booleans")
        if operation == ReduceOp.SUM:
            number = _OPERATIONS[ReduceOp.MAX]  # or; a sum of bytes would overflow
        return flat.view(torch.uint8), number
    if flat.is_complex():
        if operation not in (ReduceOp.SUM, ReduceOp.AVG):
            raise NotImplementedError(f"oneCCL: no {operation} of complex numbers")
        return torch.view_as_real(flat).view(-1), number
    if operation == ReduceOp.AVG and not flat.is_floating_point():
        raise NotImplementedError("oneCCL: no average of integers")
    if flat.dtype not in _TYPES:
        flat = flat.to(torch.float32 if flat.is_floating_point() else torch.int64)
    return flat, number


def _as_reduced(flat: Tensor, like: Tensor) -> Tensor:
    """Back from `_reducible`."""
    if like.is_complex():
        flat = torch.view_as_complex(flat.view(-1, 2))
    elif like.dtype == torch.bool:
        flat = flat.view(torch.bool)
    return flat.view(like.shape)


def operation_of(opts: Any) -> Any:
    """The reduction that c10d's options ask for; NotImplementedError where there is none."""
    operation = ReduceOp.SUM if opts is None else opts.reduceOp
    known = (*_OPERATIONS, *_BITWISE, ReduceOp.AVG)
    for candidate in known:
        if operation == candidate:
            return candidate
    raise NotImplementedError(f"oneCCL: no reduction {operation}")
