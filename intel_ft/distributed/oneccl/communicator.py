"""Blocking collectives of one oneCCL communicator, called only on the thread of call_thread.

Data that is only moved is sent as bytes; data that is reduced is converted where oneCCL lacks its
dtype.
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


class CclCommunicator:
    """The ranks of a group. Tensors may have any dtype and layout."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size
        self._handle = Handle()

    def connect(self, store: Store) -> None:
        """Connect to the other ranks, which the store brings together."""
        set_environment()
        identity = UniqueId()
        if self.rank == 0:
            library().call("GetUniqueId", byref(identity))
            store.set("oneccl", bytes(identity).hex())
        else:
            identity = UniqueId.from_buffer_copy(bytes.fromhex(store.get("oneccl").decode()))
        library().call("CommInitRank", byref(self._handle), self.size, identity, self.rank)

    def leave(self, *, last: bool) -> None:
        """Destroy the communicator, and finalize MPI after the last one."""
        library().call("CommFinalize", self._handle)
        library().call("CommDestroy", self._handle)
        if last:
            library().finalize_mpi()

    def _call(self, name: str, source: Tensor, target: Tensor, count: int, *more: int) -> None:
        if count:
            pointers = source.data_ptr(), target.data_ptr()
            dtype = _TYPES[source.dtype]
            library().call(name, *pointers, count, dtype, *more, self._handle, None)

    def all_reduce(self, tensor: Tensor, operation: Any) -> None:
        """Reduce the tensor over all ranks, in place."""
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
        """As all_reduce, with the result only on the root."""
        if operation in _BITWISE:
            self.all_reduce(tensor, operation)
            return
        flat, number = _reducible(tensor, operation)
        self._call("Reduce", flat, flat, flat.numel(), number, root)
        self._finish(tensor, flat, operation)

    def reduce_scatter(self, output: Tensor, whole: Tensor, operation: Any) -> None:
        """Write this rank's part of the reduction of `whole` to output, 1/size as large."""
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
        """Write the reduced `flat` to the tensor."""
        if operation == ReduceOp.AVG:
            flat.div_(self.size)
        if flat.data_ptr() != tensor.data_ptr():
            tensor.copy_(_as_reduced(flat, tensor))

    def broadcast(self, tensor: Tensor, root: int) -> None:
        """Copy the root's tensor to all ranks, in place."""
        flat = _bytes(tensor)
        self._call("Broadcast", flat, flat, flat.numel(), root)
        if flat.data_ptr() != tensor.data_ptr():
            tensor.copy_(flat.view(tensor.dtype).view(tensor.shape))

    def all_gather_into(self, output: Tensor, local: Tensor) -> None:
        """Write the local tensors of all ranks to output, in order of rank."""
        flat = _bytes(local)
        whole = _bytes(output)
        self._call("AllGather", flat, whole, flat.numel())
        if whole.data_ptr() != output.data_ptr():
            output.copy_(whole.view(output.dtype).view(output.shape))

    def all_gather(self, parts: list[Tensor], local: Tensor) -> None:
        """Write the local tensor of each rank to parts[rank]; sizes may differ."""
        if len({part.numel() for part in parts}) > 1:
            for rank, part in enumerate(parts):
                if rank == self.rank:
                    part.copy_(local)
                self.broadcast(part, rank)
            return
        whole = local.new_empty((len(parts), *local.shape))
        self.all_gather_into(whole, local)
        for part, row in zip(parts, whole, strict=True):
            part.copy_(row.view(part.shape))

    def all_to_all(self, outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
        """Write that rank's inputs[self.rank] to outputs[rank].

        Parts are padded to the largest one of all ranks, because oneCCL needs equal sizes.
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
            received_part = row[: part.numel() * part.element_size()].clone()
            part.copy_(received_part.view(part.dtype).view(part.shape))


def _bytes(tensor: Tensor) -> Tensor:
    """The tensor's elements as bytes [n], without a copy if it is contiguous."""
    return tensor.contiguous().view(-1).view(torch.uint8)


def _reducible(tensor: Tensor, operation: Any) -> tuple[Tensor, int]:
    """The tensor, flat and in a dtype that oneCCL reduces, and the number of the operation."""
    number = _OPERATIONS[ReduceOp.SUM if operation == ReduceOp.AVG else operation]
    if tensor.dtype in _TYPES and operation != ReduceOp.AVG and tensor.is_contiguous():
        return tensor, number  # the common case, without the microseconds of the rest
    flat = tensor.detach().contiguous().view(-1)
    if flat.dtype == torch.bool:
        if operation == ReduceOp.AVG:
            raise NotImplementedError("oneCCL cannot average booleans")
        if operation == ReduceOp.SUM:
            number = _OPERATIONS[ReduceOp.MAX]  # or; a sum of bytes would overflow
        return flat.view(torch.uint8), number
    if flat.is_complex():
        if operation not in (ReduceOp.SUM, ReduceOp.AVG):
            raise NotImplementedError(f"oneCCL cannot reduce complex numbers with {operation}")
        return torch.view_as_real(flat).view(-1), number
    if operation == ReduceOp.AVG and not flat.is_floating_point():
        raise NotImplementedError("oneCCL cannot average integers")
    if flat.dtype not in _TYPES:
        flat = flat.to(torch.float32 if flat.is_floating_point() else torch.int64)
    return flat, number


def _as_reduced(flat: Tensor, like: Tensor) -> Tensor:
    """Undo `_reducible`: the dtype and shape of `like`."""
    if like.is_complex():
        flat = torch.view_as_complex(flat.view(-1, 2))
    elif like.dtype == torch.bool:
        flat = flat.view(torch.bool)
    return flat.view(like.shape)


def operation_of(opts: Any) -> Any:
    """The reduction in c10d's options; raises NotImplementedError if oneCCL does not have it."""
    operation = ReduceOp.SUM if opts is None else opts.reduceOp
    for candidate in (*_OPERATIONS, *_BITWISE, ReduceOp.AVG):
        if operation == candidate:
            return candidate
    raise NotImplementedError(f"oneCCL has no reduction {operation}")
