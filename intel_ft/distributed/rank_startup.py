"""What a rank does before torch loads: check the world, log to its file, bind to cores."""

import contextlib
import faulthandler
import logging
import os
import platform
import sys
import time
import traceback
from pathlib import Path
from typing import NamedTuple

from intel_ft.decisions import Decision
from intel_ft.distributed.binding import bind
from intel_ft.distributed.rendezvous import check_address
from intel_ft.errors import EnvironmentProblem, FailedElsewhere, IntelFTError
from intel_ft.host.launcher_env import TORCHRUN, LauncherEnv
from intel_ft.orphan import end_with_parent
from intel_ft.plurals import count_of

LOGS = "INTEL_FT_LOGS"  # the variable with the folder of logs
FAILED = "failed"  # the file in it with the exit code of the first rank that failed
STOP = "stop"  # the file in it with the number of a signal that `launch` received


class LaunchOptions(NamedTuple):
    """What `launch` tells each rank: the world size, HOST:PORT of rank 0, the folder of logs."""

    ranks: int | None = None
    master: str | None = None
    logs: Path | None = None


def start_rank(options: LaunchOptions, binding: str, collective: str = "auto") -> list[Decision]:
    """Check that the world is the one that was launched, open this rank's log, and bind to cores.

    binding: backend.bind; collective: backend.collective. Raises EnvironmentProblem.
    """
    if options.logs is not None:
        os.environ[LOGS] = str(options.logs)  # first, so that errors below reach `launch`
    env = LauncherEnv.detect()
    if options.ranks is not None and env.size != options.ranks:
        raise EnvironmentProblem(
            f"launched: {count_of(options.ranks, 'rank')}, but this process sees {env.size} "
            f"(host: {platform.node()}, launcher: {env.launcher}): was it started by a different "
            "MPI's mpirun?"
        )
    if options.ranks is not None:
        end_with_parent()  # if the launcher is killed
    if options.master is not None and env.launcher != TORCHRUN:  # torchrun sets its own
        # Overwrites what an earlier job left in the environment.
        os.environ["MASTER_ADDR"], _, os.environ["MASTER_PORT"] = options.master.rpartition(":")
    if env.size > 1:
        os.environ["RANK"] = str(env.rank)  # error lines name it
        check_address(
            os.environ.get("MASTER_ADDR", "127.0.0.1"), os.environ.get("MASTER_PORT", "29500")
        )
    if options.logs is not None:
        _log_to(options.logs / f"rank-{env.rank}.log")
    if env.rank:
        for handler in logging.getLogger().handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.WARNING)
    decisions = bind(env, binding, collective)
    for decision in decisions:
        logging.getLogger(__name__).info("%s", decision)
    return decisions


def report_exit_code(code: int, why: str | None = None) -> None:
    """Tell `launch` the exit code of this process, through a file in the folder of logs.

    Launchers return a code of their own, and hang where a host is unreachable. `why`, by default
    the error that is being handled, is appended to this rank's log.
    """
    if logs := os.environ.get(LOGS):
        with contextlib.suppress(OSError), (Path(logs) / FAILED).open("x") as file:
            file.write(f"{code}\n")
        if why := why or _error():
            _append(Path(logs) / f"rank-{os.environ.get('RANK', '0')}.log", why)


def _error() -> str | None:
    """The error that is being handled; with its traceback unless it is an IntelFTError."""
    error = sys.exc_info()[1]
    if error is None or isinstance(error, FailedElsewhere | KeyboardInterrupt):
        return None
    if isinstance(error, IntelFTError):
        return str(error)
    return "".join(traceback.format_exception(error))


def _append(log: Path, text: str) -> None:
    """Append an error line if the log exists; a rank that failed before it had a log gets none.

    Not through logging, because another thread may hold its lock.
    """
    with contextlib.suppress(OSError), log.open("r+", encoding="utf-8") as file:
        file.seek(0, os.SEEK_END)
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} error: {text.rstrip()}\n")


def stop_signal() -> int | None:
    """The signal that `launch` received, or None.

    It arrives through a file, because launchers react to signals by killing ranks.
    """
    try:
        return int((Path(os.environ[LOGS]) / STOP).read_text(encoding="utf-8"))
    except (KeyError, OSError, ValueError):
        return None


def _log_to(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, mode="a", encoding="utf-8")
    except OSError as error:
        raise EnvironmentProblem(
            f"{path}: cannot write this rank's log on {platform.node()} ({error.strerror})"
        ) from None
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logging.getLogger().addHandler(handler)
    faulthandler.enable(os.open(path, os.O_WRONLY | os.O_APPEND))
