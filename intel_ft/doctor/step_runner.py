"""Runs steps in a separate process, so that a crash becomes a fact in the diagnosis."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_PROGRAM = (sys.executable, "-m", "intel_ft.doctor.steps")


@dataclass(frozen=True)
class Outcome:
    """The result of a step: its `value` or its `error`, and the signal if it was killed by one."""

    value: Any = None
    error: str | None = None
    signal: str | None = None


NOT_TRIED = Outcome(error="not tried")


def run_steps(
    steps: Sequence[str],
    environment: Mapping[str, str],
    seconds: float,
    program: Sequence[str] = _PROGRAM,
) -> tuple[dict[str, Outcome], str]:
    """Each step's outcome, and what the process printed on stderr.

    `program` gets the steps as arguments and prints a line of JSON for each, in order: {"step",
    "value" or "error"}. If it crashes or prints nothing for `seconds`, the current step has failed,
    and a new process continues with the next step. If the first step fails in this way, the others
    are not tried.
    """
    outcomes: dict[str, Outcome] = {}
    stderr = ""
    remaining = list(steps)
    while remaining:
        failure, out, err = _run([*program, *remaining], environment, seconds)
        stderr += err
        for line in out.splitlines():
            answer = json.loads(line)
            outcomes[answer["step"]] = Outcome(answer.get("value"), answer.get("error"))
        unanswered = [step for step in remaining if step not in outcomes]
        if not unanswered:
            break
        outcomes[unanswered[0]] = failure
        remaining = unanswered[1:] if unanswered[0] != steps[0] else []
    return {step: outcomes.get(step, NOT_TRIED) for step in steps}, stderr


def _run(
    command: list[str], environment: Mapping[str, str], seconds: float
) -> tuple[Outcome, str, str]:
    """How the process ended (the outcome of its first unanswered step), its stdout and stderr."""
    received, timed_out = b"", False
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        with process:
            stream = process.stdout
            assert stream is not None
            while select.select([stream], [], [], seconds)[0]:
                if not (part := os.read(stream.fileno(), 2**16)):
                    break
                received += part
            else:
                timed_out = True
                process.kill()
        errors.seek(0)
        out, err = received.decode(errors="replace"), errors.read().decode(errors="replace")
    if timed_out:
        return Outcome(error=f"no answer in {seconds:g} s"), out, err
    return _failure(process.returncode, err), out, err


def _failure(code: int, stderr: str) -> Outcome:
    if code >= 0:
        last = stderr.strip().splitlines()[-1:] or [""]
        return Outcome(error=f"the process ended with exit code {code}: {last[0]}".strip(": "))
    name = signal.Signals(-code).name
    meaning = {
        "SIGILL": "illegal instruction: the CPU does not have it, or it is not permitted here",
        "SIGKILL": "killed, as Linux does when memory runs out",
    }.get(name, "the process crashed")
    return Outcome(error=f"{name}: {meaning}", signal=name)
