"""Blocking collectives of one oneCCL communicator, called only on the thread of call_thread.

Data that is only moved is sent as bytes; `reductions` converts what is reduced.
"""

from collections.abc import Sequence
from ctypes import byref
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import Store
from torch.distributed import ReduceOp

from intel_ft.distributed.oneccl import checks
from intel_ft.distributed.oneccl.environment import (
    chosen_variables,
    errors_name,
    lines_to_stderr,
    why_wrong,
)
from intel_ft.distributed.oneccl.library import Handle, UniqueId, library, set_environment
from intel_ft.distributed.oneccl.reductions import BITWISE, TYPES, to_reducible, write_reduced


class CclCommunicator:
    """The ranks of a group. Tensors may have any dtype and layout."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size
        self.connected = False
        self._handle = Handle()
        self._store: Store | None = None

    def connect(self, store: Store) -> None:
        """Connect to the other ranks, which the store brings together."""
        if problem := why_wrong():
            raise RuntimeError(problem)
        chosen = chosen_variables()
        set_environment()
        self._store = store  # kept, or rank 0's would close while others create the next group
        with errors_name(chosen):
            identity = self._identity(store)
            library().call("CommInitRank", byref(self._handle), self.size, identity, self.rank)
        self.connected = True

    def _identity(self, store: Store) -> UniqueId:
        """What rank 0 creates and the store passes on."""
        if self.rank:
            return UniqueId.from_buffer_copy(bytes.fromhex(store.get("oneccl").decode()))
        identity = UniqueId()
        with lines_to_stderr():
            library().call("GetUniqueId", byref(identity))
        store.set("oneccl", bytes(identity).hex())
        return identity

    def leave(self) -> None:
        """Destroy the communicator. With the last one of a process oneCCL finalizes MPI."""
        library().call("CommFinalize", self._handle)
        library().call("CommDestroy", self._handle)

    def _call(self, name: str, source: Tensor, target: Tensor, count: int, *more: int) -> None:
        if count:
            pointers = source.data_ptr(), target.data_ptr()
            dtype = TYPES[source.dtype]
            library().call(name, *pointers, count, dtype, *more, self._handle, None)

    def all_reduce(self, tensor: Tensor, operation: Any) -> None:
        """Reduce the tensor over all ranks, in place."""
        if operation == ReduceOp.SUM and tensor.dtype in TYPES and tensor.is_contiguous():
            self._call("AllReduce", tensor, tensor, tensor.numel(), 0)  # the common case, sooner
            return
        if operation in BITWISE:
            whole = tensor.new_empty((self.size, *tensor.shape))
            self.all_gather_into(whole, tensor)
            tensor.copy_(whole[0])
            for part in whole[1:]:
                tensor.copy_(BITWISE[operation](tensor, part))
            return
        flat, number = to_reducible(tensor, operation)
        self._call("AllReduce", flat, flat, flat.numel(), number)
        write_reduced(flat, tensor, operation, self.size)

    def reduce(self, tensor: Tensor, operation: Any, root: int) -> None:
        """As all_reduce, with the result only on the root."""
        if operation in BITWISE:
            self.all_reduce(tensor, operation)
            return
        flat, number = to_reducible(tensor, operation)
        self._call("Reduce", flat, flat, flat.numel(), number, root)
        if self.rank == root:
            write_reduced(flat, tensor, operation, self.size)

    def reduce_scatter(self, output: Tensor, whole: Tensor, operation: Any) -> None:
        """Write this rank's part of the reduction of `whole` to output, 1/size as large."""
        if operation in BITWISE:
            reduced = whole.clone()
            self.all_reduce(reduced, operation)
            output.copy_(reduced.view(self.size, *output.shape)[self.rank])
            return
        flat, number = to_reducible(whole, operation)
        part = flat.new_empty(flat.numel() // self.size)
        self._call("ReduceScatter", flat, part, part.numel(), number)
        write_reduced(part, output, operation, self.size)

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
                    part.copy_(local.reshape(part.shape))
                self.broadcast(part, rank)
            return
        whole = local.new_empty((len(parts), *local.shape))
        self.all_gather_into(whole, local)
        for part, row in zip(parts, whole, strict=True):
            part.copy_(row.view(part.shape))

    def all_to_all(self, outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
        """Write that rank's inputs[self.rank] to outputs[rank].

        Parts are padded to the largest one of all ranks, because oneCCL needs equal sizes. Raises
        RuntimeError on all ranks where a rank sends more or less than another one receives.
        """
        sizes = torch.tensor([[_size(part) for part in parts] for parts in (inputs, outputs)])
        every = torch.empty(self.size, 2, self.size, dtype=torch.int64)
        self.all_gather_into(every, sizes)
        wrong = (every[:, 0] != every[:, 1].T).nonzero()
        if len(wrong):
            source, target = wrong[0].tolist()
            sent, received = int(every[source, 0, target]), int(every[target, 1, source])
            raise RuntimeError(
                f"all_to_all: rank {source} of the group sends {sent} bytes to rank {target}, "
                f"which receives {received}"
            )
        width = int(every.max())
        sent_rows = torch.zeros(self.size, width, dtype=torch.uint8)
        for row, part in zip(sent_rows, inputs, strict=True):
            row[: _size(part)] = _bytes(part)
        received_rows = torch.empty_like(sent_rows)
        self._call("AllToAll", sent_rows, received_rows, width)
        for row, part in zip(received_rows, outputs, strict=True):
            part.copy_(row[: _size(part)].clone().view(part.dtype).view(part.shape))

    def require_same(self, text: str) -> None:
        """Raise RuntimeError on all ranks unless they call this with the same text."""
        rows = torch.empty(self.size, checks.TEXT_BYTES, dtype=torch.uint8)
        self.all_gather_into(rows, checks.to_row(text))
        checks.require_equal_rows(rows)


def _size(tensor: Tensor) -> int:
    """The number of bytes of a tensor's elements."""
    return tensor.numel() * tensor.element_size()


def _bytes(tensor: Tensor) -> Tensor:
    """The tensor's elements as bytes [n], without a copy if it is contiguous."""
    return tensor.contiguous().view(-1).view(torch.uint8)
