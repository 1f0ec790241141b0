"""The process group of a run: which collective backend, over which network interface."""

import logging
import os
import platform
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import psutil
import torch.distributed as dist

from intel_ft.config_sections import BackendConfig
from intel_ft.decisions import Decision
from intel_ft.distributed.collective import Installed, choose_collective
from intel_ft.distributed.heartbeat import Heartbeat
from intel_ft.distributed.rendezvous import check_address, meet, require_same
from intel_ft.distributed.world import World
from intel_ft.errors import EnvironmentProblem, IntelFTError
from intel_ft.host.launcher_env import TORCHRUN

_UNASSIGNED = "192.0.2.1"  # RFC 5737: no host has it, so packets to it take the default route

_TORCH_NAMES = {"nccl": "cpu:gloo,cuda:nccl"}  # by the device of a collective's tensor

logger = logging.getLogger(__name__)


@contextmanager
def init_process_group(
    world: World, backend: BackendConfig, compute: str = "cpu"
) -> Iterator[list[Decision]]:
    """A context with torch.distributed's default group; yields what was chosen for it and why.

    Enter it before anything else initializes torch.distributed. compute: the backend that
    `backends.choice` chose.

    A collective that is not done within `backend.timeout` seconds raises an error that names it; a
    rank that sends no heartbeat for `backend.heartbeat_timeout` seconds ends this process. Raises
    EnvironmentProblem for a wrong setup, and IntelFTError where the ranks do not find each other:
    that may succeed at the next attempt, because a port may have been taken or a node lost since
    the launcher checked.
    """
    if world.size == 1:
        yield []
        return
    if world.rank:
        logging.getLogger("intel_ft").setLevel(logging.WARNING)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # only rank 0 prints results
    address = _set_rendezvous(world)
    chosen = choose_collective(
        backend, compute=compute, launcher=world.launcher, installed=Installed.detect()
    )
    decisions = [chosen]
    if interface := network_interface(world):
        decisions.append(interface)
        # libfabric takes the first one it finds, and hangs if that is a bridge inside this host.
        for name in ("GLOO_SOCKET_IFNAME", "FI_TCP_IFACE"):
            os.environ.setdefault(name, interface.value)
    if chosen.value == "ccl":
        import intel_ft.distributed.oneccl  # noqa: F401  registers the backend
        from intel_ft.distributed.oneccl.environment import why_wrong

        if problem := why_wrong():
            raise EnvironmentProblem(problem)
    timeout = timedelta(seconds=backend.timeout)
    try:
        store = meet(world.rank, world.size, address, timeout)
        require_same(store, world.rank, world.size, chosen.name, chosen.value)
        dist.init_process_group(
            _TORCH_NAMES.get(chosen.value, chosen.value),
            rank=world.rank,
            world_size=world.size,
            store=store,
            timeout=timeout,
        )
    except (RuntimeError, ValueError) as error:
        raise IntelFTError(
            f"rank {world.rank} of {world.size} on {platform.node()} could not join the process "
            f"group at {address[0]}:{address[1]} ({' '.join(str(error).split())[:400]}): check "
            "that every rank has started, and that MASTER_ADDR, MASTER_PORT and firewalls let them "
            "reach rank 0"
        ) from error
    for decision in decisions:
        logger.info("%s", decision)
    heartbeat = Heartbeat(world, backend.heartbeat_timeout, store)
    try:
        yield decisions
    finally:
        heartbeat.stop()
    world.barrier()
    dist.destroy_process_group()


def network_interface(world: World) -> Decision | None:
    """The interface that leads to the other ranks; None leaves the choice to gloo."""
    name = "network interface"
    if chosen := os.environ.get("GLOO_SOCKET_IFNAME"):
        return Decision(name, chosen, "set in the environment")
    if world.local_size == world.size:
        return Decision(name, "lo", "all ranks are on this host")
    master = os.environ["MASTER_ADDR"]
    address, why = _source_address(master), f"the route to {master}"
    if address is not None and address.startswith("127."):  # Debian maps its own name to 127.0.1.1
        address, why = _source_address(_UNASSIGNED), "the default route"
    if address is not None:
        for interface, addresses in psutil.net_if_addrs().items():
            if interface != "lo" and address in (entry.address for entry in addresses):
                return Decision(name, interface, why)
    return None


def _source_address(destination: str) -> str | None:
    """The address of this host from which packets to `destination` leave; None without a route."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((destination, 9))  # sends nothing; the kernel picks the route
            return str(probe.getsockname()[0])
    except OSError:
        return None


def _set_rendezvous(world: World) -> tuple[str, int]:
    """Set the variables that torch and Accelerate read, whichever launcher started this rank.

    Returns the host and port of rank 0. Raises EnvironmentProblem.
    """
    environment = os.environ
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
    if missing and world.local_size < world.size:
        raise EnvironmentProblem(
            f"rank {world.rank} on {platform.node()}: {missing[0]} is not set, and the ranks "
            "are on several hosts: set MASTER_ADDR to the host of rank 0 and MASTER_PORT to a free "
            "port there, or start the run with `intel-ft launch`"
        )
    host = environment.setdefault("MASTER_ADDR", "127.0.0.1")
    # Ranks on one host have the same parent process; two jobs on one host do not.
    port = environment.setdefault("MASTER_PORT", str(20000 + os.getppid() % 20000))
    address = (host, check_address(host, port))
    if world.rank == 0 and world.launcher != TORCHRUN:  # torchrun's agent may listen elsewhere
        _require_local_address(host)
    environment["RANK"] = str(world.rank)
    environment["WORLD_SIZE"] = str(world.size)
    environment["LOCAL_RANK"] = str(world.local_rank)
    environment["LOCAL_WORLD_SIZE"] = str(world.local_size)
    return address


def _require_local_address(host: str) -> None:
    """Raise EnvironmentProblem unless `host`, where rank 0 is to listen, is this host."""
    addresses = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    for family, kind, protocol, _, address in addresses:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(address)  # port 0: any
                return
        except OSError:
            continue
    raise EnvironmentProblem(
        f"MASTER_ADDR={host} is not an address of {platform.node()}, where rank 0 runs: set it to "
        "that host, or unset it if an earlier job left it in the environment"
    )
