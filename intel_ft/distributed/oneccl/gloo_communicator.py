"""The calls of CclCommunicator made over gloo: for threads that oneCCL does not serve."""

from datetime import timedelta
from typing import Any

from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, ProcessGroupGloo, Store
from torch.distributed import (
    AllreduceOptions,
    BroadcastOptions,
    ReduceOp,
    ReduceOptions,
    ReduceScatterOptions,
)

from intel_ft.distributed.oneccl.communicator import CclCommunicator

_OPERATIONS = (ReduceOp.SUM, ReduceOp.PRODUCT, ReduceOp.MAX, ReduceOp.MIN)  # oneCCL's numbers


def gloo_group(store: Store, rank: int, size: int, timeout: timedelta) -> Any:
    """A gloo group whose ranks connect to each other when they first send something."""
    gloo: Any = ProcessGroupGloo  # its options are not in torch's type stubs
    options = gloo._Options()
    options._devices = [gloo.create_default_device(lazy_init=True)]
    options._timeout = timeout
    return gloo(PrefixStore("gloo", store), rank, size, options)


class GlooCommunicator(CclCommunicator):
    """The ranks of a group. Unlike oneCCL's, it may be used from any thread."""

    def __init__(self, group: Any) -> None:
        super().__init__(group.rank(), group.size())
        self._group = group

    def _call(self, name: str, source: Tensor, target: Tensor, count: int, *more: int) -> None:
        if not count:
            return
        source, target = source.view(-1), target.view(-1)
        options: Any
        if name in ("AllReduce", "Reduce"):
            options = AllreduceOptions() if name == "AllReduce" else ReduceOptions()
            options.reduceOp = _OPERATIONS[more[0]]
            if name == "Reduce":
                options.rootRank = more[1]
            work = getattr(self._group, name.lower())([target], options)
        elif name == "ReduceScatter":
            options = ReduceScatterOptions()
            options.reduceOp = _OPERATIONS[more[0]]
            work = self._group._reduce_scatter_base(target, source, options)
        elif name == "Broadcast":
            options = BroadcastOptions()
            options.rootRank = more[0]
            work = self._group.broadcast([target], options)
        elif name == "AllGather":
            work = self._group._allgather_base(target, source)
        else:
            work = self._group.alltoall_base(target, source, [], [])
        work.wait()
