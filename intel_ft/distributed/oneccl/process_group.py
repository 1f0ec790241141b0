"""The `ccl` process group: torch.distributed's collectives over oneCCL.

Collectives return at once, with a future; call_thread makes the calls while the caller continues.
"""

import atexit
import contextlib
import os
import platform
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

from intel_ft.distributed.oneccl.call_thread import Call, call_thread
from intel_ft.distributed.oneccl.communicator import CclCommunicator, operation_of
from intel_ft.distributed.oneccl.library import under_intel_mpi

_NO_TIMEOUT = timedelta(milliseconds=-1)
_LEAVE_TIMEOUT = timedelta(seconds=10)

_alive: "weakref.WeakSet[CclGroup]" = weakref.WeakSet()


class _Work(Work):
    """A submitted call. torch's own Work around a future would wait, but not raise."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self._call = call

    def wait(self, timeout: timedelta = _NO_TIMEOUT) -> bool:
        """Wait for the result; raises the error of a failed call. The call has its own timeout."""
        self._call.wait()
        return True

    def is_completed(self) -> bool:
        """Whether the call has finished or failed."""
        return self._call.is_done()

    def get_future(self) -> "Future[Any]":
        """The result as a future, for callbacks."""
        return self._call.future()


_Base: Any = ProcessGroup  # its overloads are for Python; torch's C++ calls the methods below


class CclGroup(_Base):  # type: ignore[misc]
    """The collectives of torch.distributed, for CPU tensors of any dtype and layout.

    oneCCL has no send, no recv, and no pre-multiplied sums.
    """

    def __init__(self, store: Store, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)
        if (mpi_size := os.environ.get("PMI_SIZE")) and under_intel_mpi():
            mpi_rank = int(os.environ["PMI_RANK"])
            if size == int(mpi_size) and mpi_rank != rank:
                raise RuntimeError(
                    f"init_process_group was called with rank {rank}, but MPI started this process "
                    f"as rank {mpi_rank}: pass the ranks of MPI"
                )
        self._seconds = timeout.total_seconds()
        self._place = f"rank {rank} of {size}, {platform.node()}"
        self._communicator = CclCommunicator(rank, size)
        self._count = 0
        self._submit("connecting", None, lambda: self._communicator.connect(store)).wait()
        _alive.add(self)

    def allreduce(self, tensors: list[Tensor], opts: Any = None) -> Work:
        """Reduce each tensor over all ranks, in place."""
        operation = operation_of(opts)

        def action() -> list[Tensor]:
            for tensor in tensors:
                self._communicator.all_reduce(tensor, operation)
            return tensors

        return self._work("all_reduce", opts, action)

    def allreduce_coalesced(self, tensors: list[Tensor], opts: Any = None) -> Work:
        """As allreduce."""
        return self.allreduce(tensors, opts)

    def reduce(self, tensors: list[Tensor], opts: Any = None) -> Work:
        """As allreduce, but only the root's tensor is defined to have the result."""
        operation, root = operation_of(opts), opts.rootRank

        def action() -> list[Tensor]:
            for tensor in tensors:
                self._communicator.reduce(tensor, operation, root)
            return tensors

        return self._work("reduce", opts, action)

    def broadcast(self, tensors: list[Tensor], opts: Any = None) -> Work:
        """Copy the root's tensors to all ranks, in place."""
        root = opts.rootRank

        def action() -> list[Tensor]:
            for tensor in tensors:
                self._communicator.broadcast(tensor, root)
            return tensors

        return self._work("broadcast", opts, action)

    def allgather(
        self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None
    ) -> Work:
        """Write that rank's inputs[i] to outputs[i][rank]; sizes may differ by rank."""

        def action() -> list[list[Tensor]]:
            for parts, local in zip(outputs, inputs, strict=True):
                self._communicator.all_gather(parts, local)
            return outputs

        return self._work("all_gather", opts, action)

    def allgather_coalesced(
        self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None
    ) -> Work:
        """Write that rank's inputs[i] to outputs[rank][i]."""
        return self.allgather([list(parts) for parts in zip(*outputs, strict=True)], inputs, opts)

    def all_gather_single(self, output: Tensor, local: Tensor, opts: Any = None) -> Work:
        """Write all ranks' local tensors [n, ...] to output [size * n, ...], in order of rank."""
        return self.all_gather_single_coalesced([output], [local], opts)

    def all_gather_single_coalesced(
        self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None
    ) -> Work:
        """As all_gather_single, for several tensors."""

        def action() -> list[Tensor]:
            for output, local in zip(outputs, inputs, strict=True):
                self._communicator.all_gather_into(output, local)
            return outputs

        return self._work("all_gather_into_tensor", opts, action)

    def gather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> Work:
        """As allgather, but only the root has outputs."""

        def action() -> list[list[Tensor]]:
            local = inputs[0]
            whole = local.new_empty((self.size(), *local.shape))
            self._communicator.all_gather_into(whole, local)
            for part, row in zip(outputs[0] if outputs else (), whole, strict=False):
                part.copy_(row)
            return outputs

        return self._work("gather", opts, action)

    def scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]], opts: Any = None) -> Work:
        """Write the root's inputs[0][rank] to outputs[0]."""
        root = opts.rootRank

        def action() -> list[Tensor]:
            output = outputs[0]
            if self.rank() == root:
                whole = torch.stack([part.to(output.dtype) for part in inputs[0]])
            else:
                whole = output.new_empty((self.size(), *output.shape))
            self._communicator.broadcast(whole, root)
            output.copy_(whole[self.rank()])
            return outputs

        return self._work("scatter", opts, action)

    def reduce_scatter(
        self, outputs: list[Tensor], inputs: list[list[Tensor]], opts: Any = None
    ) -> Work:
        """Write the reduction of all ranks' inputs[i][rank] to outputs[i]; sizes may differ."""
        operation = operation_of(opts)

        def action() -> list[Tensor]:
            for output, parts in zip(outputs, inputs, strict=True):
                if len({part.numel() for part in parts}) == 1:
                    self._communicator.reduce_scatter(output, torch.stack(parts), operation)
                    continue
                for rank, part in enumerate(parts):
                    reduced = part.clone()
                    self._communicator.reduce(reduced, operation, rank)
                    if rank == self.rank():
                        output.copy_(reduced)
            return outputs

        return self._work("reduce_scatter", opts, action)

    def reduce_scatter_single(self, output: Tensor, whole: Tensor, opts: Any = None) -> Work:
        """Write this rank's part of the reduction of whole [size * n, ...] to output [n, ...]."""
        return self.reduce_scatter_single_coalesced([output], [whole], opts)

    def reduce_scatter_single_coalesced(
        self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None
    ) -> Work:
        """As reduce_scatter_single, for several tensors."""
        operation = operation_of(opts)

        def action() -> list[Tensor]:
            for output, whole in zip(outputs, inputs, strict=True):
                self._communicator.reduce_scatter(output, whole, operation)
            return outputs

        return self._work("reduce_scatter_tensor", opts, action)

    def alltoall(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None) -> Work:
        """Write that rank's inputs[this rank] to outputs[rank]; sizes may differ."""

        def action() -> list[Tensor]:
            self._communicator.all_to_all(outputs, inputs)
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
        """As alltoall, along the first dimension; empty sizes mean equal sizes."""

        def action() -> Tensor:
            outputs = _split(output, output_sizes, self.size())
            self._communicator.all_to_all(outputs, _split(whole, input_sizes, self.size()))
            return output

        return self._work("all_to_all_single", opts, action)

    def barrier(self, opts: Any = None) -> Work:
        """Finished when all ranks have called it."""

        def action() -> None:
            self._communicator.all_reduce(torch.zeros(1, dtype=torch.int32), ReduceOp.SUM)

        return self._work("barrier", opts, action)

    def send(self, tensors: list[Tensor], dstRank: int, tag: int) -> Work:
        """Not available: oneCCL's CPU library does not have it."""
        raise NotImplementedError(_NO_SEND)

    def recv(self, tensors: list[Tensor], srcRank: int, tag: int) -> Work:
        """Not available: oneCCL's CPU library does not have it."""
        raise NotImplementedError(_NO_SEND)

    def shutdown(self) -> None:
        """Leave the group; called by `destroy_process_group`, and at the exit of the process.

        Gives up after some seconds, so as not to wait for a rank that has ended.
        """
        if self not in _alive or call_thread().broken is not None:
            return
        _alive.discard(self)
        last = not _alive
        with contextlib.suppress(RuntimeError):
            self._submit(
                "leaving", _LEAVE_TIMEOUT, lambda: self._communicator.leave(last=last)
            ).wait()

    abort = shutdown

    def getBackendName(self) -> str:
        """The name in torch.distributed."""
        return "ccl"

    # The names in torch 2.8.
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
        describe = f"{name} (call {self._count}, {self._place})"
        return call_thread().submit(describe, seconds, action)


def _leave_all() -> None:
    for group in sorted(_alive, key=lambda group: group.size()):
        group.shutdown()
    if not call_thread.cache_info().currsize:
        return
    if call_thread().broken is None:
        call_thread().stop()
        return
    # A call is still inside oneCCL, and would block this process until it returns.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


atexit.register(_leave_all)

_NO_SEND = "oneCCL's CPU library has no send and recv: use a gloo group for them"


def new_group(store: Store, rank: int, size: int, timeout: timedelta) -> CclGroup:
    """Create a group; called by torch.distributed."""
    return CclGroup(store, rank, size, timeout)


def _split(tensor: Tensor, sizes: list[int], parts: int) -> Sequence[Tensor]:
    return tensor.split_with_sizes(sizes) if sizes else tensor.chunk(parts)
