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

from intel_ft.errors import (
    EnvironmentProblem,
    GateRefused,
    IntelFTError,
    UserError,
    missing_package,
)
from intel_ft.orphan import end_with_parent
from intel_ft.plurals import count_of

logger = logging.getLogger(__name__)

_ERROR = re.compile(r"(Error|Exception|Problem): \S")
_MISSING = re.compile(r"(?:ModuleNotFound|Import)Error: (No module named '([\w.]+)'|.+)")
_OWN_ERROR = re.compile(
    r"intel_ft\.errors\.(UserError|GateRefused|EnvironmentProblem|MissingPackage): (.+)"
)


def thread_environment(threads: int | None) -> dict[str, str]:
    """This process's environment with `threads` OpenMP threads; None leaves it unchanged.

    Raises UserError for more threads than this process can use.
    """
    cores = len(os.sched_getaffinity(0))
    if threads is None:
        return dict(os.environ)
    if not 1 <= threads <= cores:
        raise UserError(
            f"--threads {threads}: this process can use 1 to {count_of(cores, 'thread')}"
        )
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

    Raises what `run_command` raises.
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
    with the command's error, or that of the first rank that failed; an error that belongs to
    another exit code, such as a package that is missing there, is raised as that.
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
        raise _as_raised_there(name, reason)
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


def _as_raised_there(name: str, reason: str) -> IntelFTError:
    """The error to raise for the last line of a traceback; IntelFTError where that is none."""
    if match := _MISSING.search(reason):
        module = match[2]
        failed = ModuleNotFoundError(reason, name=module) if module else ImportError(match[1])
        if missing := missing_package(failed):
            return type(missing)(f"{name}: {missing}")
    if match := _OWN_ERROR.search(reason):
        kind = {"UserError": UserError, "GateRefused": GateRefused}.get(
            match[1], EnvironmentProblem
        )
        return kind(f"{name}: {match[2]}")
    return IntelFTError(f"{name}: {reason}")


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
