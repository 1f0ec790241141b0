"""What a process does first when it is one of several ranks; called from cli.train, before torch
loads.
"""

import contextlib
import faulthandler
import logging
import os
import sys
import time
import traceback
from pathlib import Path
from typing import NamedTuple

from intel_ft.decisions import Decision
from intel_ft.distributed.binding import bind
from intel_ft.errors import EnvironmentProblem, FailedElsewhere, IntelFTError
from intel_ft.host.launcher_env import TORCHRUN, LauncherEnv
from intel_ft.orphan import end_with_parent

LOGS = "INTEL_FT_LOGS"  # the folder of logs, for what writes more into it
FAILED = "failed"  # the file there that has the exit code of the first rank that failed
STOP = "stop"  # the file there in which `launch` leaves the number of a signal it received


class Expected(NamedTuple):
    """What `launch` tells each rank: how many there are, rank 0's HOST:PORT, where logs go."""

    ranks: int | None = None
    master: str | None = None
    logs: Path | None = None


def begin(expected: Expected, wanted_binding: str, collective: str = "auto") -> list[Decision]:
    """Check that the world is the one that was launched, log to a file of this rank's own, and bind
    to cores. `collective` is backend.collective. Raises EnvironmentProblem.
    """
    if expected.logs is not None:
        os.environ[LOGS] = str(expected.logs)  # first, so that `launch` hears of what is wrong here
    started = LauncherEnv.detect()
    if expected.ranks is not None and started.size != expected.ranks:
        raise EnvironmentProblem(
            f"{expected.ranks} ranks were launched, but this process sees {started.size} "
            f"(launcher: {started.launcher}): is the mpirun that started it another MPI's?"
        )
    if expected.ranks is not None:
        end_with_parent()  # if the launcher is killed
    if expected.master is not None and started.launcher != TORCHRUN:  # which has its own
        # Whatever an earlier job left in the environment.
        os.environ["MASTER_ADDR"], _, os.environ["MASTER_PORT"] = expected.master.rpartition(":")
    if started.size > 1:
        os.environ["RANK"] = str(started.rank)  # error lines name it
    if expected.logs is not None:
        _log_to(expected.logs / f"rank-{started.rank}.log")
    if started.rank:
        for handler in logging.getLogger().handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.WARNING)
    decisions = bind(started, wanted_binding, collective)
    for decision in decisions:
        logging.getLogger(__name__).info("%s", decision)
    return decisions


def leave_exit_code(code: int, why: str | None = None) -> None:
    """Tell `launch` the code this process ends with: launchers return one of their own, and hang
    where a host is gone. `why`, by default the error that is being handled, goes to its log.
    """
    if logs := os.environ.get(LOGS):
        with contextlib.suppress(OSError), (Path(logs) / FAILED).open("x") as file:
            file.write(f"{code}\n")
        if why := why or _error():
            _append(Path(logs) / f"rank-{os.environ.get('RANK', '0')}.log", why)


def _error() -> str | None:
    """The error that is being handled; with a traceback if it is none of ours."""
    error = sys.exc_info()[1]
    if error is None or isinstance(error, FailedElsewhere | KeyboardInterrupt):
        return None
    known = isinstance(error, IntelFTError)
    return str(error) if known else "".join(traceback.format_exception(error))


def _append(log: Path, text: str) -> None:
    """Not through logging, whose lock another thread may hold. A rank that failed before it had a
    log gets none.
    """
    with contextlib.suppress(OSError), log.open("r+", encoding="utf-8") as file:
        file.seek(0, os.SEEK_END)
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} error: {text.rstrip()}\n")


def asked_to_stop() -> int | None:
    """The signal that `launch` received, if any: launchers answer signals by killing ranks."""
    try:
        return int((Path(os.environ[LOGS]) / STOP).read_text(encoding="utf-8"))
    except (KeyError, OSError, ValueError):
        return None


def _log_to(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, mode="a", encoding="utf-8")
    except OSError as error:
        raise EnvironmentProblem(f"{path}: no log can be written ({error.strerror})") from None
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logging.getLogger().addHandler(handler)
    faulthandler.enable(os.open(path, os.O_WRONLY | os.O_APPEND))
