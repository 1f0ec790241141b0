"""How the ranks meet: a c10d store on the host of rank 0, and which ranks are still awaited.

Imports torch only to meet, because addresses are checked before it loads.
"""

import itertools
import logging
import os
import platform
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from intel_ft.errors import EnvironmentProblem, FailedElsewhere

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

PATIENCE = 10.0  # seconds until the ranks that have not come are named
_AGAIN = 60.0  # seconds until they are named again
_POLL = 0.02

logger = logging.getLogger(__name__)

_meetings = itertools.count()  # a store may outlive a process group


def check_address(host: str, port: str) -> int:
    """Return the port's number. Raises EnvironmentProblem for what could only be waited for.

    Those are a port that does not exist and a host name without an address.
    """
    here = platform.node()
    if not port.isdecimal() or not 0 < int(port) < 2**16:
        raise EnvironmentProblem(
            f"MASTER_PORT={port} on {here} is not a port: set it to a free one from 1024 to 65535"
        )
    try:
        socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise EnvironmentProblem(
            f"MASTER_ADDR={host} cannot be resolved on {here} ({error}): set it to a name or "
            "address of the host of rank 0"
        ) from None
    return int(port)


def address_from_environment() -> tuple[str, int]:
    """The host and port of rank 0. Raises EnvironmentProblem."""
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise EnvironmentProblem(
                f"{name} is not set on {platform.node()}: set MASTER_ADDR to the host of rank 0 "
                "and MASTER_PORT to a free port there"
            )
    host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    return host, check_address(host, port)


def meet(rank: int, size: int, address: tuple[str, int], timeout: timedelta) -> "Store":
    """The store of the group at rank 0's address (host, port), after all ranks have come.

    After PATIENCE seconds rank 0 logs which ranks it waits for, and each other one that it waits
    for rank 0. Raises RuntimeError if a rank has not come within `timeout`.
    """
    from torch._C._distributed_c10d import PrefixStore, TCPStore

    host, port = address
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun's agent serves it
    serves = rank == 0 and not agent
    with _saying(f"rank {rank} of {size} still waits for rank 0 at {host}:{port}"):
        tcp = TCPStore(
            host,
            port,
            is_master=serves,
            timeout=timeout,
            wait_for_workers=False,
            multi_tenant=serves,
        )
    store = PrefixStore(f"intel_ft/{_attempt(tcp, size)}/{next(_meetings)}", tcp)
    store.set(f"rank/{rank}", platform.node())
    store.add("ranks", 1)
    if rank == 0:
        _await_all(store, size, f"{host}:{port}", timeout)
        store.set("all", "1")
    else:
        store.wait(["all"], timeout)
    return PrefixStore("group", store)


def require_same(store: "Store", rank: int, size: int, name: str, value: str) -> None:
    """Raise EnvironmentProblem on rank 0, FailedElsewhere on the others, if the values differ.

    For what must be equal before a group exists: ranks of different backends wait for each other.
    """
    store.set(f"{name}/host/{rank}", platform.node())
    store.set(f"{name}/{rank}", value)
    values = [store.get(f"{name}/{other}").decode() for other in range(size)]
    if len(set(values)) == 1:
        return
    store.add(f"{name}/read", 1)
    if rank:
        raise FailedElsewhere(EnvironmentProblem.exit_code, 0)
    end = time.monotonic() + PATIENCE
    while store.add(f"{name}/read", 0) < size and time.monotonic() < end:
        time.sleep(_POLL)  # this process serves the store
    other = next(rank for rank, one in enumerate(values) if one != values[0])
    host = store.get(f"{name}/host/{other}").decode()
    raise EnvironmentProblem(
        f"the ranks do not have the same {name}: rank {other} on {host} has {values[other]}, rank"
        f" 0 on {platform.node()} has {values[0]}: set {name} to a value that all hosts have"
    )


def _attempt(store: "Store", size: int) -> str:
    """Which start of these ranks by torchrun this is: its agent's store outlives them.

    Agents of several hosts do not count the same restarts, so that ranks are counted there.
    """
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE"):
        return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return f"hosts/{(store.add('intel_ft/starts', 1) - 1) // size}"


def _await_all(store: "Store", size: int, address: str, timeout: timedelta) -> None:
    start = time.monotonic()
    seconds = PATIENCE
    while store.add("ranks", 0) < size:
        waited = time.monotonic() - start
        if waited > min(seconds, timeout.total_seconds()):
            ranks = [str(rank) for rank in range(size) if not store.check([f"rank/{rank}"])]
            missing = f"rank{'s' * (len(ranks) > 1)} {', '.join(ranks[:20])} of {size}"
            if waited > timeout.total_seconds():
                raise RuntimeError(f"{missing} did not arrive within {waited:.0f} s")
            logger.warning(
                "waiting for %s for %.0f s: check that every rank was started, and can reach %s",
                missing,
                waited,
                address,
            )
            seconds += _AGAIN
        time.sleep(_POLL)


@contextmanager
def _saying(text: str) -> Iterator[None]:
    """Log the text if the block takes longer than PATIENCE seconds."""
    timer = threading.Timer(PATIENCE, logger.warning, ["%s (%g s)", text, PATIENCE])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
