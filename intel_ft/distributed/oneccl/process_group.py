"""The `ccl` process group: torch.distributed's collectives over oneCCL; called from
oneccl.__init__.

Collectives return at once, with a future: oneccl.calls makes them, so that a caller can go on
computing.
"""

import atexit
import contextlib
import os
import sys
import weakref
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import Store
from torch.distributed import ProcessGroup, ReduceOp, Work
from torch.futures import Future

from intel_ft.distributed.oneccl.call_thread import Call, caller
from intel_ft.distributed.oneccl.communicator import Communicator, operation_of
from intel_ft.distributed.oneccl.library import under_intel_mpi

_NO_TIMEOUT = timedelta(milliseconds=-1)
_GOODBYE = timedelta(seconds=10)

_alive: "weakref.WeakSet[CclGroup]" = weakref.WeakSet()


class _Work(Work):
    """A call on its way. torch's own work around a future would wait and not raise."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self._call = call

    def wait(self, timeout: timedelta = _NO_TIMEOUT) -> bool:
        """Until it is done; raises what it failed with. The call's own timeout holds."""
        self._call.wait()
        return True

    def is_completed(self) -> bool:
        """Whether it is done, or has failed."""
        return self._call.is_done()

    def get_future(self) -> "Future[Any]":
        """Its result, for callbacks."""
        return self._call.future()


_Base: Any = ProcessGroup  # its overloads are for callers; torch's C++ calls the forms below


class CclGroup(_Base):  # type: ignore[misc]
    """See torch.distributed for each collective. Tensors are on the CPU, of any dtype and layout.

    Missing in oneCCL, and here: send, recv, and pre-multiplied sums.
    """

    def __init__(self, store: Store, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)
        if (started := os.environ.get("PMI_SIZE")) and under_intel_mpi():
            own = int(os.environ["PMI_RANK"])
            if size == int(started) and own != rank:
                raise RuntimeError(f"rank {rank} was started as rank {own} by MPI: use MPI's ranks")
        self._seconds = timeout.total_seconds()
        self._place = f"rank {rank} of {size}"
        self._ranks = Communicator(rank, size)
        self._count = 0
        self._submit("connecting", None, lambda: self._ranks.connect(store)).wait()
        _alive.add(self)

    def allreduce(self, tensors: list[Tensor], opts: Any = None) -> Work:
        """Each of the tensors, reduced over all ranks, in place."""
        operation = operation_of(opts)

        def action() -> list[Tensor]:
            for tensor in tensors:
                self._ranks.all_reduce(tensor, operation)
            return tensors

        return self._work("all_reduce", opts, action)

    def allreduce_coalesced(self, tensors: list[Tensor], opts: Any = None) -> Work:
        """As allreduce."""
        return self.allreduce(tensors, opts)

    def reduce(self, tensors: list[Tensor], opts: Any = None) -> Work:
        """As allreduce; only the root's tensor is said to hold the result."""
        operation, root = operation_of(opts), opts.rootRank

        def action() -> list[Tensor]:
            for tensor in tensors:
                self._ranks.reduce(tensor, operation, root)
            return tensors

        return self._work("reduce", opts, action)

    def broadcast(self, tensors: list[Tensor], opts: Any = None) -> Work:
        """The root's tensors, everywhere."""
        root = opts.rootRank

        def action() -> list[Tensor]:
            for tensor in tensors:
                self._ranks.broadcast(tensor, root)
            return tensors

        return self._work("broadcast", opts, action)

    def allgather(
        self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None
    ) -> Work:
        """outputs[i][rank] becomes that rank's inputs[i]; ranks may have different sizes."""

        def action() -> list[list[Tensor]]:
            for parts, own in zip(outputs, inputs, strict=True):
                self._ranks.all_gather(parts, own)
            return outputs

        return self._work("all_gather", opts, action)

    def allgather_coalesced(
        self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None
    ) -> Work:
        """outputs[rank][i] becomes that rank's inputs[i]."""
        return self.allgather([list(parts) for parts in zip(*outputs, strict=True)], inputs, opts)

    def all_gather_single(self, output: Tensor, own: Tensor, opts: Any = None) -> Work:
        """output [size * n, ...] becomes all ranks' own [n, ...], in order of rank."""
        return self.all_gather_single_coalesced([output], [own], opts)

    def all_gather_single_coalesced(
        self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None
    ) -> Work:
        """As all_gather_single, for several tensors."""

        def action() -> list[Tensor]:
            for output, own in zip(outputs, inputs, strict=True):
                self._ranks.all_gather_into(output, own)
            return outputs

        return self._work("all_gather_into_tensor", opts, action)

    def gather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> Work:
        """As allgather; only the root has outputs."""

        def action() -> list[list[Tensor]]:
            own = inputs[0]
            whole = own.new_empty((self.size(), *own.shape))
            self._ranks.all_gather_into(whole, own)
            for part, found in zip(outputs[0] if outputs else (), whole, strict=False):
                part.copy_(found)
            return outputs

        return self._work("gather", opts, action)

    def scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]], opts: Any = None) -> Work:
        """outputs[0] becomes the root's inputs[0][rank]."""
        root = opts.rootRank

        def action() -> list[Tensor]:
            own = outputs[0]
            if self.rank() == root:
                whole = torch.stack([part.to(own.dtype) for part in inputs[0]])
            else:
                whole = own.new_empty((self.size(), *own.shape))
            self._ranks.broadcast(whole, root)
            own.copy_(whole[self.rank()])
            return outputs

        return self._work("scatter", opts, action)

    def reduce_scatter(
        self, outputs: list[Tensor], inputs: list[list[Tensor]], opts: Any = None
    ) -> Work:
        """outputs[i] becomes the reduction of all ranks' inputs[i][rank]; sizes may differ."""
        operation = operation_of(opts)

        def action() -> list[Tensor]:
            for output, parts in zip(outputs, inputs, strict=True):
                if len({part.numel() for part in parts}) == 1:
                    self._ranks.reduce_scatter(output, torch.stack(parts), operation)
                    continue
                for rank, part in enumerate(parts):
                    reduced = part.clone()
                    self._ranks.reduce(reduced, operation, rank)
                    if rank == self.rank():
                        output.copy_(reduced)
            return outputs

        return self._work("reduce_scatter", opts, action)

    def reduce_scatter_single(self, output: Tensor, whole: Tensor, opts: Any = None) -> Work:
        """output [n, ...] becomes this rank's part of the reduction of whole [size * n, ...]."""
        return self.reduce_scatter_single_coalesced([output], [whole], opts)

    def reduce_scatter_single_coalesced(
        self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None
    ) -> Work:
        """As reduce_scatter_single, for several tensors."""
        operation = operation_of(opts)

        def action() -> list[Tensor]:
            for output, whole in zip(outputs, inputs, strict=True):
                self._ranks.reduce_scatter(output, whole, operation)
            return outputs

        return self._work("reduce_scatter_tensor", opts, action)

    def alltoall(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None) -> Work:
        """outputs[rank] becomes that rank's inputs[own rank]; sizes may differ."""

        def action() -> list[Tensor]:
            self._ranks.all_to_all(outputs, inputs)
            return outputs

        return self._work("all_to_all", opts, action)

    def all_to_all_single(
        self,
        output: Tensor,
        whole: Tensor,
        output_sizes: list[int],
        input_sizes: list[int],
        opts: Any = None,
    ) -> Work:
        """As alltoall, along the first dimension; no sizes are equal sizes."""

        def action() -> Tensor:
            outputs = _split(output, output_sizes, self.size())
            self._ranks.all_to_all(outputs, _split(whole, input_sizes, self.size()))
            return output

        return self._work("all_to_all_single", opts, action)

    def barrier(self, opts: Any = None) -> Work:
        """Done when every rank has come here."""

        def action() -> None:
            self._ranks.all_reduce(torch.zeros(1, dtype=torch.int32), ReduceOp.SUM)

        return self._work("barrier", opts, action)

    def send(self, tensors: list[Tensor], dstRank: int, tag: int) -> Work:
        """Not in oneCCL's CPU library."""
        raise NotImplementedError(_NO_SEND)

    def recv(self, tensors: list[Tensor], srcRank: int, tag: int) -> Work:
        """Not in oneCCL's CPU library."""
        raise NotImplementedError(_NO_SEND)

    def shutdown(self) -> None:
        """Leave the group; `destroy_process_group` calls this, and so does a process that ends.

        Gives up after some seconds: a rank that will never come must not keep this one.
        """
        if self not in _alive or caller().broken is not None:
            return
        _alive.discard(self)
        last = not _alive
        with contextlib.suppress(RuntimeError):
            self._submit("leaving", _GOODBYE, lambda: self._ranks.leave(last=last)).wait()

    abort = shutdown

    def getBackendName(self) -> str:
        """Its name in torch.distributed."""
        return "ccl"

    # What torch 2.8 calls them.
    _allgather_base = all_gather_single
    allgather_into_tensor_coalesced = all_gather_single_coalesced
    _reduce_scatter_base = reduce_scatter_single
    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced
    alltoall_base = all_to_all_single

    def _work(self, name: str, opts: Any, action: Callable[[], Any]) -> Work:
        timeout = None if opts is None or opts.timeout == _NO_TIMEOUT else opts.timeout
        return _Work(self._submit(name, timeout, action))

    def _submit(self, name: str, timeout: timedelta | None, action: Callable[[], Any]) -> Call:
        seconds = timeout.total_seconds() if timeout else self._seconds
        self._count += 1
        describe = f"{name} (call {self._count} on {self._place})"
        return caller().submit(describe, seconds, action)


def _leave_all() -> None:
    for group in sorted(_alive, key=lambda group: group.size()):
        group.shutdown()
    if not caller.cache_info().currsize:
        return
    if caller().broken is None:
        caller().stop()
        return
    # A call is still inside of oneCCL, which would keep this process until it returns.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


atexit.register(_leave_all)

_NO_SEND = "oneCCL's CPU library has no send and receive: use a gloo group for them"


def new_group(store: Store, rank: int, size: int, timeout: timedelta) -> CclGroup:
    """What torch.distributed calls to make a group."""
    return CclGroup(store, rank, size, timeout)


def _split(tensor: Tensor, sizes: list[int], parts: int) -> Sequence[Tensor]:
    return tensor.split_with_sizes(sizes) if sizes else tensor.chunk(parts)
