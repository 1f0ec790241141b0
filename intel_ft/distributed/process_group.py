"""Joining the ranks of a run: which collective backend, over which network interface; called from
training.run.
"""

import fcntl
import logging
import os
import platform
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

from intel_ft.config import BackendConfig
from intel_ft.decisions import Decision
from intel_ft.distributed.heartbeat import Heartbeat
from intel_ft.distributed.world import World
from intel_ft.errors import EnvironmentProblem, IntelFTError
from intel_ft.host.launcher_env import INTEL_MPI, TORCHRUN

_SIOCGIFADDR = 0x8915  # ioctl: the IPv4 address of a network interface (netdevice(7))

_ELSEWHERE = "192.0.2.1"  # RFC 5737: nobody's, so the way there is the default route

_GROUPS = {"nccl": "cpu:gloo,cuda:nccl"}  # by the device of a collective's tensor

logger = logging.getLogger(__name__)


@contextmanager
def init_process_group(
    world: World, backend: BackendConfig, compute: str = "cpu"
) -> Iterator[list[Decision]]:
    """A context with torch.distributed's default group, made before anything else makes one; what
    was chosen for it and why. compute: what backends.choice chose.

    Later errors of its collectives name what was not done within `backend.timeout` seconds; a rank
    without a sign of life for `backend.heartbeat_timeout` ends this process. Raises
    EnvironmentProblem, and IntelFTError where the others do not come: a port may have been taken,
    or a node lost, since somebody looked, so that another try may do.
    """
    if world.size == 1:
        yield []
        return
    if world.rank:
        logging.getLogger("intel_ft").setLevel(logging.WARNING)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # results are the first rank's to print
    _tell_torch(world)
    decisions = [choose(world, backend, compute)]
    timeout = timedelta(seconds=backend.timeout)
    if interface := network_interface(world):
        decisions.append(interface)
        # libfabric takes the first it finds, and hangs where that is a bridge of the host's own
        for name in ("GLOO_SOCKET_IFNAME", "FI_TCP_IFACE"):
            os.environ.setdefault(name, interface.value)
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        dist.init_process_group(
            _GROUPS.get(decisions[0].value, decisions[0].value),
            rank=world.rank,
            world_size=world.size,
            timeout=timeout,
        )
    except (RuntimeError, ValueError) as error:
        raise IntelFTError(
            f"rank {world.rank} of {world.size} could not join the others through {where} "
            f"({' '.join(str(error).split())[:200]}): check MASTER_ADDR, MASTER_PORT and firewalls"
        ) from error
    for decision in decisions:
        logger.info("%s", decision)
    heartbeat = Heartbeat(world, backend.heartbeat_timeout)
    try:
        yield decisions
    finally:
        heartbeat.stop()
    world.barrier()
    dist.destroy_process_group()


def choose(world: World, backend: BackendConfig, compute: str = "cpu") -> Decision:
    """nccl between GPUs; between CPUs ccl under Intel MPI where it loads, else mpi where torch has
    it, else gloo.
    """
    name = "backend.collective"
    if compute == "cuda":
        if not dist.is_nccl_available():
            raise EnvironmentProblem("backend.name=cuda: this torch was built without NCCL")
        return Decision(name, "nccl", "between GPUs; what is on the hosts goes through gloo")
    if backend.collective == "nccl":
        raise EnvironmentProblem("backend.collective=nccl is between GPUs, and this runs on a CPU")
    return _between_cpus(world, backend.collective, name)


def _between_cpus(world: World, collective: str, name: str) -> Decision:
    if collective == "gloo":
        return Decision(name, "gloo", "set in the config")
    if collective == "mpi" or (collective == "auto" and dist.is_mpi_available()):
        if not dist.is_mpi_available():
            raise EnvironmentProblem("backend.collective=mpi: this torch was built without MPI")
        return Decision(name, "mpi", "this torch was built with MPI")
    from intel_ft.distributed import oneccl

    problem = oneccl.why_not_usable()
    if collective == "ccl":
        if problem is not None:
            raise EnvironmentProblem(f"backend.collective=ccl: {problem}")
        return Decision(name, "ccl", "set in the config")
    if problem is not None:
        return Decision(name, "gloo", problem)
    if world.launcher != INTEL_MPI:
        return Decision(name, "gloo", "oneCCL without Intel MPI's mpirun is slower than gloo")
    return Decision(name, "ccl", "Intel MPI started this, and oneCCL loads")


def network_interface(world: World) -> Decision | None:
    """The interface on the way to the other ranks; None leaves it to gloo."""
    name = "network interface"
    if chosen := os.environ.get("GLOO_SOCKET_IFNAME"):
        return Decision(name, chosen, "set in the environment")
    if world.local_size == world.size:
        return Decision(name, "lo", "all ranks are on this host")
    host = os.environ["MASTER_ADDR"]
    own, why = _source(host), f"the route to {host}"
    if own is not None and own.startswith("127."):  # Debian gives a host's own name 127.0.1.1
        own, why = _source(_ELSEWHERE), "the default route"
    for _, interface in socket.if_nameindex() if own is not None else ():
        if _address(interface) == own and interface != "lo":
            return Decision(name, interface, why)
    return None


def _source(host: str) -> str | None:
    """The address of this host from which packets to `host` leave; None without a route."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # sends nothing; the kernel picks the route
            return str(probe.getsockname()[0])
    except OSError:
        return None


def _address(interface: str) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", interface.encode()))
        except OSError:
            return None  # it has none
    return socket.inet_ntoa(answer[20:24])


def _tell_torch(world: World) -> None:
    """What torch and Accelerate read, whichever launcher it was."""
    environment = os.environ
    if "MASTER_ADDR" not in environment and world.local_size < world.size:
        raise EnvironmentProblem(
            "MASTER_ADDR is not set: ranks on several hosts find each other by it; set it to rank "
            "0's host, and MASTER_PORT"
        )
    environment.setdefault("MASTER_ADDR", "127.0.0.1")
    if world.rank == 0 and world.launcher != TORCHRUN:  # whose agent may be the one that listens
        _require_own(environment["MASTER_ADDR"])
    # Ranks of one host have the same parent, and two jobs of one host have not.
    environment.setdefault("MASTER_PORT", str(20000 + os.getppid() % 20000))
    environment["RANK"] = str(world.rank)
    environment["WORLD_SIZE"] = str(world.size)
    environment["LOCAL_RANK"] = str(world.local_rank)
    environment["LOCAL_WORLD_SIZE"] = str(world.local_size)


def _require_own(host: str) -> None:
    """Raise EnvironmentProblem unless `host`, where rank 0 listens for the others, is this one."""
    try:
        addresses = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise EnvironmentProblem(f"MASTER_ADDR={host} cannot be resolved ({error})") from None
    for family, kind, protocol, _, address in addresses:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(address)  # port 0: any
                return
        except OSError:
            continue
    raise EnvironmentProblem(
        f"MASTER_ADDR={host} is no address of {platform.node()}, where rank 0 runs: set it to rank "
        "0's host, or unset it if an earlier job left it"
    )
