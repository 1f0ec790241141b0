"""Running a launcher to its end: signals are forwarded, and no process is left behind."""

import contextlib
import ctypes
import functools
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import psutil

from intel_ft.distributed.folder_lock import FolderLock
from intel_ft.distributed.launch.commands import Command
from intel_ft.distributed.rank_startup import FAILED, STOP
from intel_ft.files import write_text
from intel_ft.orphan import end_with_parent

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
FINAL_EXIT_CODES = (0, 2, 3, 4, 130, 143)  # a restart would end the same way
_GENERATIONS = 5  # of child processes: a launcher, its proxies, their ranks
GRACE = 20.0  # seconds for a launcher to end its ranks after one has failed

logger = logging.getLogger(__name__)


def supervise(command: Command, logs: Path) -> int:
    """Run the command to its end; the exit code is that of the first rank that failed.

    If no rank reported one: the launcher's exit code if it is in FINAL_EXIT_CODES (a rank may fail
    before it can report), else 1 (a rank was killed), or 128 + the number of the signal that ended
    the launcher.

    The first SIGTERM or SIGINT asks the ranks, through a file in `logs`, to save after their step
    and stop; a second one kills them. A launcher that still runs GRACE seconds after a rank ended
    the job (because a host is unreachable) is killed, too.

    Raises UserError if `logs` cannot be written to, or another launcher uses it: the ranks of both
    would report to both.
    """
    lock = FolderLock.take(logs)
    try:
        return _supervise(command, logs, lock)
    finally:
        lock.release()


def _supervise(command: Command, logs: Path, lock: FolderLock) -> int:
    for path, text in command.files.items():
        write_text(path, text)
    _adopt_orphans()
    for name in (FAILED, STOP):
        (logs / name).unlink(missing_ok=True)
    other_children = {child.pid for child in psutil.Process().children()}
    process = subprocess.Popen(
        command.arguments,
        env=os.environ | command.environment,
        start_new_session=True,
        preexec_fn=end_with_parent,  # noqa: PLW1509 - no other thread runs yet
    )
    lock.keep()
    kill = functools.partial(_kill, process, other_children)
    with _forwarding_signals(kill, logs / STOP), _killed_after(kill, logs / FAILED):
        code = process.wait()
    kill()
    with contextlib.suppress(OSError, ValueError):
        return int((logs / FAILED).read_text(encoding="utf-8")) if code else 0
    if code < 0:
        return 128 - code
    return code if code in FINAL_EXIT_CODES else 1


@contextlib.contextmanager
def _forwarding_signals(kill: Callable[[], None], stop: Path) -> Iterator[None]:
    def receive(number: int, _: FrameType | None) -> None:
        if stop.exists():
            kill()
            return
        name = signal.Signals(number).name
        logger.warning("%s: the ranks save a checkpoint after this step, and stop", name)
        stop.write_text(f"{number}\n", encoding="utf-8")

    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, receive) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _killed_after(kill: Callable[[], None], failed: Path) -> Iterator[None]:
    ended = threading.Event()

    def watch() -> None:
        since: float | None = None
        while not ended.wait(1.0):
            if not failed.exists():
                continue
            since = since or time.monotonic()
            if time.monotonic() - since > GRACE:
                logger.warning("the launcher still ran %g s after a rank failed: killing it", GRACE)
                kill()
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _adopt_orphans() -> None:
    """Make processes that a launcher leaves behind, such as ssh, children of this process."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _kill(process: subprocess.Popen[bytes], spared: set[int]) -> None:
    """Kill the launcher and all processes that it started on this host, but none of `spared`."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for _ in range(_GENERATIONS):  # children of a killed process become children of this one
        for child in psutil.Process().children():
            if child.pid != process.pid and child.pid not in spared:
                with contextlib.suppress(ProcessLookupError, ChildProcessError):
                    os.kill(child.pid, signal.SIGKILL)
                    os.waitpid(child.pid, 0)
