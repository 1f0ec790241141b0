"""Run a measurement in a separate process that prints JSON to stdout. Imports nothing heavy."""

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


def thread_environment(threads: int | None) -> dict[str, str]:
    """This process's environment with `threads` OpenMP threads; None leaves it unchanged.

    Raises UserError for more threads than this process can use.
    """
    cores = len(os.sched_getaffinity(0))
    if threads is None:
        return dict(os.environ)
    if not 1 <= threads <= cores:
        raise UserError(f"--threads {threads}: this process can use 1 to {cores} threads")
    return {**os.environ, "OMP_NUM_THREADS": str(threads)}


def run_module(
    name: str,
    module: str,
    arguments: list[str],
    environment: Mapping[str, str],
    launcher: Sequence[str] = (),
    python: str = sys.executable,
) -> dict[str, Any]:
    """The JSON object that `launcher python -m module arguments` prints.

    Raises IntelFTError, naming the measurement `name`, where it fails.
    """
    command = [*launcher, python, "-m", module, *arguments]
    output = run_command(name, command, environment, launched=bool(launcher))
    result: dict[str, Any] = json.loads(output)
    return result


def run_command(
    name: str, command: list[str], environment: Mapping[str, str], *, launched: bool = False
) -> str:
    """The stdout of `command`, which ends with this process, so as not to disturb other runs.

    launched: the command starts several ranks. Raises IntelFTError, naming the measurement `name`,
    with the command's error, or that of the first rank that failed.
    """
    completed = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=end_with_parent,
    )
    if completed.returncode:
        reason = _failure(completed.returncode, completed.stderr, launched)
        raise IntelFTError(f"bench {name}: {reason}")
    logger.debug("%s", completed.stderr)
    return completed.stdout


@contextmanager
def result_stream() -> Iterator[TextIO]:
    """Yield the stdout of this process, for its result alone.

    Inside the block, whatever libraries print to stdout goes to stderr.
    """
    stdout = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(stdout, "w") as stream:
        yield stream


def _failure(code: int, stderr: str, launched: bool) -> str:
    """The reason for a failure, in one line.

    It is the last error of a single process, whose earlier lines are causes; of several ranks it is
    the first, which ends the others and their launcher.
    """
    if code == -signal.SIGKILL:
        return "killed (SIGKILL), as Linux does when memory runs out"
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    lines = stderr.strip().splitlines()
    if launched and (errors := [line for line in lines if _ERROR.search(line)]):
        return errors[0]
    return lines[-1] if lines else f"exit code {code}"
