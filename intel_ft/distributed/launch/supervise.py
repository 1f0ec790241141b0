"""Running a launcher until it ends: signals passed on, nothing left behind; called from
distributed.launch.run.
"""

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from intel_ft.distributed.launch.commands import Command
from intel_ft.distributed.rank_startup import FAILED, STOP
from intel_ft.files import write_text
from intel_ft.orphan import end_with_parent

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
FINAL = (0, 2, 3, 4, 130, 143)  # exit codes after which a restart would end alike
_GENERATIONS = 5  # of orphans: a launcher, its proxies, their ranks
GRACE = 20.0  # seconds that a launcher gets to end its ranks after one has failed

logger = logging.getLogger(__name__)


def supervise(command: Command, logs: Path) -> int:
    """Run the command to its end; the exit code of the first rank that failed. Where none said so:
    the launcher's if it is in FINAL (a rank may fail before it knows where to say so), 1 if not (a
    rank was killed), or 128 + the number of the signal that ended the launcher.

    A first SIGTERM or SIGINT asks the ranks, through a file in `logs`, to save after their step and
    stop; a second one kills. A launcher that still runs GRACE seconds after a rank ended the job
    (because a host is gone) is killed, too.
    """
    logs.mkdir(parents=True, exist_ok=True)
    for path, text in command.files.items():
        write_text(path, text)
    _adopt_orphans()
    for name in (FAILED, STOP):
        (logs / name).unlink(missing_ok=True)
    process = subprocess.Popen(
        command.arguments,
        env=os.environ | command.environment,
        start_new_session=True,
        preexec_fn=end_with_parent,  # noqa: PLW1509 - no other thread runs yet
    )
    with _passing_signals_to(process, logs / STOP), _killing_when(process, logs / FAILED):
        code = process.wait()
    _kill(process)
    with contextlib.suppress(OSError, ValueError):
        return int((logs / FAILED).read_text(encoding="utf-8")) if code else 0
    if code < 0:
        return 128 - code
    return code if code in FINAL else 1


@contextlib.contextmanager
def _passing_signals_to(process: subprocess.Popen[bytes], stop: Path) -> Iterator[None]:
    def receive(number: int, _: FrameType | None) -> None:
        if stop.exists():
            _kill(process)
            return
        logger.warning("%s: the ranks save after this step", signal.Signals(number).name)
        stop.write_text(f"{number}\n", encoding="utf-8")

    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, receive) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _killing_when(process: subprocess.Popen[bytes], failed: Path) -> Iterator[None]:
    ended = threading.Event()

    def watch() -> None:
        since: float | None = None
        while not ended.wait(1.0):
            if not failed.exists():
                continue
            since = since or time.monotonic()
            if time.monotonic() - since > GRACE:
                logger.warning("the launcher did not end %g s after a rank failed: killed", GRACE)
                _kill(process)
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _adopt_orphans() -> None:
    """What a launcher leaves when it ends, such as its ssh, becomes a child of this process."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The launcher, and everything it started and left on this host."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for _ in range(_GENERATIONS):  # children of what is killed become ours
        for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
            if int(child) != process.pid:
                with contextlib.suppress(ProcessLookupError, ChildProcessError):
                    os.kill(int(child), signal.SIGKILL)
                    os.waitpid(int(child), 0)
