"""A measurement in a process of its own, JSON on its stdout; called from insight's bench modules
(start it) and sides (answer). Imports nothing heavy.
"""

import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from intel_ft.errors import IntelFTError, UserError
from intel_ft.orphan import end_with_parent

logger = logging.getLogger(__name__)

_ERROR = re.compile(r"(Error|Exception|Problem): \S")


def environment(threads: int | None) -> dict[str, str]:
    """This process's environment with that many OpenMP threads; None leaves them as they are.

    Raises UserError for more threads than this process may use.
    """
    cores = len(os.sched_getaffinity(0))
    if threads is None:
        return dict(os.environ)
    if not 1 <= threads <= cores:
        raise UserError(f"--threads {threads}: this process may use 1 to {cores}")
    return {**os.environ, "OMP_NUM_THREADS": str(threads)}


def measured(
    side: str,
    module: str,
    arguments: list[str],
    environment: Mapping[str, str],
    launcher: Sequence[str] = (),
    python: str = sys.executable,
) -> dict[str, Any]:
    """What `launcher python -m module arguments` answers. Raises IntelFTError, naming `side`."""
    command = [*launcher, python, "-m", module, *arguments]
    result: dict[str, Any] = json.loads(finished(side, command, environment, bool(launcher)))
    return result


def finished(
    side: str, command: list[str], environment: Mapping[str, str], launched: bool = False
) -> str:
    """What the command printed; where this process is killed it ends, too, rather than disturb what
    is measured next. Raises IntelFTError, naming `side`, with its error, or where it was `launched`
    as ranks that of the first that failed.
    """
    done = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=end_with_parent,
    )
    if done.returncode:
        raise IntelFTError(f"bench {side}: {_reason(done.returncode, done.stderr, launched)}")
    logger.debug("%s", done.stderr)
    return done.stdout


@contextmanager
def answer() -> Iterator[TextIO]:
    """A stream to the process that started this one: its stdout. What libraries print inside the
    block goes to stderr.
    """
    stdout = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(stdout, "w") as stream:
        yield stream


def _reason(code: int, stderr: str, launched: bool) -> str:
    """In one line. Of a process the last error, which may have others as its causes; of ranks the
    first, which the others, and their launcher, end for.
    """
    if code == -signal.SIGKILL:
        return "killed, which is how Linux ends a process when memory runs out"
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    lines = stderr.strip().splitlines()
    if launched and (errors := [line for line in lines if _ERROR.search(line)]):
        return errors[0]
    return lines[-1] if lines else f"exit code {code}"
