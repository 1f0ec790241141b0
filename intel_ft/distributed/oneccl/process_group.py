"""The `ccl` process group: torch.distributed's collectives over oneCCL.

Collectives return at once, with a future; call_thread makes the calls while the caller continues.
oneCCL serves one thread: with several, the order of their calls would differ between ranks. The
collectives of other threads go over gloo, and so do those of groups that other threads create.
"""

import os
import platform
import threading
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import (
    DebugLevel,
    PrefixStore,
    Store,
    get_debug_level,
)
from torch.distributed import ProcessGroup, ReduceOp, Work
from torch.futures import Future

from intel_ft.distributed.oneccl import checks, lifetime
from intel_ft.distributed.oneccl.call_thread import Call, call_thread
from intel_ft.distributed.oneccl.communicator import CclCommunicator
from intel_ft.distributed.oneccl.gloo_communicator import GlooCommunicator, gloo_group
from intel_ft.distributed.oneccl.library import under_intel_mpi
from intel_ft.distributed.oneccl.reductions import operation_of, require_reducible

_Action = Callable[[CclCommunicator], Any]
_NO_TIMEOUT = timedelta(milliseconds=-1)


class _Work(Work):
    """A submitted call. torch's own Work around a future would wait, but not raise."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self._call = call

    def wait(self, timeout: timedelta = _NO_TIMEOUT) -> bool:
        """Wait for the result; raises the error of a failed call, or if the timeout passes."""
        self._call.wait(timeout.total_seconds())
        return True

    def is_completed(self) -> bool:
        """Whether the call has finished or failed."""
        return self._call.is_done()

    def is_success(self) -> bool:
        """Whether the call has finished without an error."""
        return self._call.is_done() and self._call.error is None

    def exception(self) -> Exception | None:
        """The error of a failed call."""
        return self._call.error

    def result(self) -> Any:
        """The tensors that the call wrote to."""
        return self._call.wait()

    def get_future(self) -> "Future[Any]":
        """The result as a future, for callbacks."""
        return self._call.future()


_Base: Any = ProcessGroup  # its overloads are for Python; torch's C++ calls the methods below


class CclGroup(_Base):  # type: ignore[misc]
    """The collectives of torch.distributed, for CPU tensors of any dtype and strides.

    What is not defined here, such as send, recv and monitored_barrier, torch calls on the gloo
    group that is registered as this group's backend; so it does what asks for a group's backend.
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
        self._compares_calls = get_debug_level() == DebugLevel.DETAIL
        self._place = f"rank {rank} of {size}, {platform.node()}"
        self._oneccl = CclCommunicator(rank, size)
        self._store = store
        self._count = 0
        store = _unused_part(store, size)
        if call_thread().serves_this_thread():
            self._submit("connecting", timeout, lambda: self._oneccl.connect(store)).wait()
            lifetime.opened(self._oneccl)
        self._gloo = gloo_group(store, rank, size, timeout)
        self._over_gloo = GlooCommunicator(self._gloo)
        self._register_backend(torch.device("cpu"), ProcessGroup.BackendType.CUSTOM, self._gloo)
        self._set_default_backend(ProcessGroup.BackendType.CUSTOM)

    def allreduce(self, tensors: list[Tensor], opts: Any = None) -> Work:
        """Reduce each tensor over all ranks, in place. Sparse ones are summed by gloo."""
        if any(tensor.is_sparse for tensor in tensors):
            summed: Work = self._gloo.allreduce(tensors, opts)
            return summed
        operation = _operation_for(tensors, opts)

        def action(ranks: CclCommunicator) -> list[Tensor]:
            for tensor in tensors:
                ranks.all_reduce(tensor, operation)
            return tensors

        return self._work("all_reduce", opts, action, operation, tensors)

    def allreduce_coalesced(self, tensors: list[Tensor], opts: Any = None) -> Work:
        """As allreduce."""
        return self.allreduce(tensors, opts)

    def reduce(self, tensors: list[Tensor], opts: Any = None) -> Work:
        """As allreduce, but only the root's tensor is defined to have the result."""
        operation, root = _operation_for(tensors, opts), opts.rootRank

        def action(ranks: CclCommunicator) -> list[Tensor]:
            for tensor in tensors:
                ranks.reduce(tensor, operation, root)
            return tensors

        return self._work("reduce", opts, action, operation, root, tensors)

    def broadcast(self, tensors: list[Tensor], opts: Any = None) -> Work:
        """Copy the root's tensors to all ranks, in place."""
        checks.require_dense(tensors)
        root = opts.rootRank

        def action(ranks: CclCommunicator) -> list[Tensor]:
            for tensor in tensors:
                ranks.broadcast(tensor, root)
            return tensors

        return self._work("broadcast", opts, action, root, tensors)

    def allgather(
        self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None
    ) -> Work:
        """Write that rank's inputs[i] to outputs[i][rank]; sizes may differ by rank."""
        checks.require_length("all_gather", outputs, len(inputs), "inputs")
        for parts, local in zip(outputs, inputs, strict=True):
            checks.require_dense([*parts, local])
            checks.require_length("all_gather", parts, self.size())
            checks.require_dtype("all_gather", parts, local)
            checks.require_alike("all_gather", [local], parts[self.rank()])

        def action(ranks: CclCommunicator) -> list[list[Tensor]]:
            for parts, local in zip(outputs, inputs, strict=True):
                ranks.all_gather(parts, local)
            return outputs

        return self._work("all_gather", opts, action, outputs)

    def allgather_coalesced(
        self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None
    ) -> Work:
        """Write that rank's inputs[i] to outputs[rank][i]."""
        checks.require_length("all_gather_coalesced", outputs, self.size())
        return self.allgather([list(parts) for parts in zip(*outputs, strict=True)], inputs, opts)

    def all_gather_single(self, output: Tensor, local: Tensor, opts: Any = None) -> Work:
        """Write all ranks' local tensors [n, ...] to output [size * n, ...], in order of rank."""
        return self.all_gather_single_coalesced([output], [local], opts)

    def all_gather_single_coalesced(
        self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None
    ) -> Work:
        """As all_gather_single, for several tensors."""
        checks.require_length("all_gather_into_tensor", outputs, len(inputs), "inputs")
        checks.require_dense([*outputs, *inputs])
        for output, local in zip(outputs, inputs, strict=True):
            checks.require_parts("all_gather_into_tensor", output, local, self.size())

        def action(ranks: CclCommunicator) -> list[Tensor]:
            for output, local in zip(outputs, inputs, strict=True):
                ranks.all_gather_into(output, local)
            return outputs

        return self._work("all_gather_into_tensor", opts, action, inputs)

    def gather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> Work:
        """As allgather, but only the root has outputs."""
        (local,) = inputs
        checks.require_dense(inputs)
        if self.rank() == opts.rootRank:
            checks.require_length("gather", outputs[0], self.size())
            checks.require_dense(outputs[0])
            checks.require_alike("gather", outputs[0], local)

        def action(ranks: CclCommunicator) -> list[list[Tensor]]:
            whole = local.new_empty((self.size(), *local.shape))
            ranks.all_gather_into(whole, local)
            for part, row in zip(outputs[0] if outputs else (), whole, strict=False):
                part.copy_(row.view(part.shape))
            return outputs

        return self._work("gather", opts, action, opts.rootRank, inputs)

    def scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]], opts: Any = None) -> Work:
        """Write the root's inputs[0][rank] to outputs[0]."""
        root = opts.rootRank
        (output,) = outputs
        checks.require_dense(outputs)
        if self.rank() == root:
            checks.require_length("scatter", inputs[0], self.size())
            checks.require_dense(inputs[0])
            checks.require_alike("scatter", inputs[0], output)

        def action(ranks: CclCommunicator) -> list[Tensor]:
            whole = output.new_empty((self.size(), *output.shape))
            if self.rank() == root:
                torch.stack([part.reshape(output.shape) for part in inputs[0]], out=whole)
            ranks.broadcast(whole, root)
            output.copy_(whole[self.rank()])
            return outputs

        return self._work("scatter", opts, action, root, outputs)

    def reduce_scatter(
        self, outputs: list[Tensor], inputs: list[list[Tensor]], opts: Any = None
    ) -> Work:
        """Write the reduction of all ranks' inputs[i][rank] to outputs[i]; sizes may differ."""
        operation = _operation_for([part for parts in inputs for part in parts], opts)
        checks.require_length("reduce_scatter", inputs, len(outputs), "outputs")
        for output, parts in zip(outputs, inputs, strict=True):
            checks.require_length("reduce_scatter", parts, self.size())
            checks.require_dtype("reduce_scatter", parts, output)
            checks.require_alike("reduce_scatter", [output], parts[self.rank()])

        def action(ranks: CclCommunicator) -> list[Tensor]:
            for output, parts in zip(outputs, inputs, strict=True):
                if len({part.shape for part in parts}) == 1:
                    ranks.reduce_scatter(output, torch.stack(parts), operation)
                    continue
                for rank, part in enumerate(parts):
                    reduced = part.clone()
                    ranks.reduce(reduced, operation, rank)
                    if rank == self.rank():
                        output.copy_(reduced.view(output.shape))
            return outputs

        return self._work("reduce_scatter", opts, action, operation, inputs)

    def reduce_scatter_single(self, output: Tensor, whole: Tensor, opts: Any = None) -> Work:
        """Write this rank's part of the reduction of whole [size * n, ...] to output [n, ...]."""
        return self.reduce_scatter_single_coalesced([output], [whole], opts)

    def reduce_scatter_single_coalesced(
        self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None
    ) -> Work:
        """As reduce_scatter_single, for several tensors."""
        operation = _operation_for([*inputs, *outputs], opts)
        checks.require_length("reduce_scatter_tensor", outputs, len(inputs), "inputs")
        for output, whole in zip(outputs, inputs, strict=True):
            checks.require_parts("reduce_scatter_tensor", whole, output, self.size())

        def action(ranks: CclCommunicator) -> list[Tensor]:
            for output, whole in zip(outputs, inputs, strict=True):
                ranks.reduce_scatter(output, whole, operation)
            return outputs

        return self._work("reduce_scatter_tensor", opts, action, operation, outputs)

    def alltoall(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None) -> Work:
        """Write that rank's inputs[this rank] to outputs[rank]; sizes may differ."""
        checks.require_dense([*outputs, *inputs])
        checks.require_length("all_to_all", outputs, self.size())
        checks.require_length("all_to_all", inputs, self.size())
        checks.require_dtype("all_to_all", [*outputs, *inputs], inputs[0])

        def action(ranks: CclCommunicator) -> list[Tensor]:
            ranks.all_to_all(outputs, inputs)
            return outputs

        return self._work("all_to_all", opts, action, inputs[0].dtype)

    def all_to_all_single(
        self,
        output: Tensor,
        whole: Tensor,
        output_sizes: list[int],
        input_sizes: list[int],
        opts: Any = None,
    ) -> Work:
        """As alltoall, along the first dimension; empty sizes mean equal sizes."""
        call, size = "all_to_all_single", self.size()
        return self.alltoall(
            list(checks.split(call, output, output_sizes, size)),
            list(checks.split(call, whole, input_sizes, size)),
            opts,
        )

    def barrier(self, opts: Any = None) -> Work:
        """Finished when all ranks have called it."""

        def action(ranks: CclCommunicator) -> None:
            ranks.all_reduce(torch.zeros(1, dtype=torch.int32), ReduceOp.SUM)

        return self._work("barrier", opts, action)

    def shutdown(self) -> None:
        """Leave the group; called by `destroy_process_group`."""
        lifetime.closed(self._oneccl)

    abort = shutdown

    def get_group_store(self) -> Store:
        """The store that the ranks of the group share."""
        return self._store

    def getBackendName(self) -> str:
        """The name in torch.distributed."""
        return "ccl"

    # The names in torch 2.8.
    _allgather_base = all_gather_single
    allgather_into_tensor_coalesced = all_gather_single_coalesced
    _reduce_scatter_base = reduce_scatter_single
    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced
    alltoall_base = all_to_all_single

    def _work(self, name: str, opts: Any, action: _Action, *same: object) -> Work:
        """Submit a call; `same` is what all ranks must call it with."""
        timeout = None if opts is None or opts.timeout == _NO_TIMEOUT else opts.timeout
        if self._compares_calls:
            action = _compared(action, checks.described(name, same))
        if self._oneccl.connected and call_thread().serves_this_thread():
            return _Work(self._submit(name, timeout, lambda: action(self._oneccl)))
        _warn_of_gloo()
        return _Work(Call.done(name, lambda: action(self._over_gloo)))

    def _submit(self, name: str, timeout: timedelta | None, action: Callable[[], Any]) -> Call:
        timeout = timeout or self._gloo.options._timeout  # which torch may have changed
        self._count += 1
        describe = f"{name} (call {self._count}, {self._place})"
        return call_thread().submit(describe, timeout.total_seconds(), action)


def new_group(store: Store, rank: int, size: int, timeout: timedelta) -> CclGroup:
    """Create a group; called by torch.distributed."""
    return CclGroup(store, rank, size, timeout)


def _unused_part(store: Store, size: int) -> Store:
    """A part of the store without the keys of earlier groups, which it may outlive.

    So does that of torchrun's agent. Agents of several hosts do not count the same restarts.
    """
    environment = os.environ
    if environment.get("LOCAL_WORLD_SIZE") == environment.get("WORLD_SIZE"):
        store = PrefixStore(f"restart/{environment.get('TORCHELASTIC_RESTART_COUNT')}", store)
    return PrefixStore(str((store.add("groups", 1) - 1) // size), store)


def _compared(action: _Action, text: str) -> _Action:
    """The action after a comparison of the ranks' calls."""

    def compared(ranks: CclCommunicator) -> Any:
        ranks.require_same(text)
        return action(ranks)

    return compared


@cache
def _warn_of_gloo() -> None:
    warnings.warn(
        f"ccl: thread {threading.current_thread().name!r} did not create the first process group: "
        "its collectives go over gloo, because oneCCL serves one thread",
        stacklevel=4,
    )


def _operation_for(tensors: Sequence[Tensor], opts: Any) -> Any:
    """The reduction in c10d's options, if these tensors can be reduced with it."""
    operation = operation_of(opts)
    checks.require_dense(tensors)
    for tensor in tensors:
        require_reducible(tensor, operation)
    return operation
