"""Trying steps in a process of its own, so that what kills it becomes a fact; called from
insight.doctor.examine.
"""

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

_PROBE = (sys.executable, "-m", "intel_ft.doctor.steps")


@dataclass(frozen=True)
class Outcome:
    """What a step came to: its `value`, or why there is none, and the signal that ended it."""

    value: Any = None
    error: str | None = None
    signal: str | None = None


NOT_TRIED = Outcome(error="not tried")


def run_steps(
    steps: Sequence[str],
    environment: Mapping[str, str],
    seconds: float,
    program: Sequence[str] = _PROBE,
) -> tuple[dict[str, Outcome], str]:
    """Each step's outcome, and what the process said on stderr.

    `program` gets the steps as arguments and answers each with a line of JSON, in order: {"step",
    "value" or "error"}. If it dies or is silent for `seconds`, the step under way is to blame, and
    a new process goes on after it; without the first step there is no going on.
    """
    outcomes: dict[str, Outcome] = {}
    said = ""
    left = list(steps)
    while left:
        ended, out, err = _run([*program, *left], environment, seconds)
        said += err
        for line in out.splitlines():
            answer = json.loads(line)
            outcomes[answer["step"]] = Outcome(answer.get("value"), answer.get("error"))
        unanswered = [step for step in left if step not in outcomes]
        if not unanswered:
            break
        outcomes[unanswered[0]] = ended
        left = unanswered[1:] if unanswered[0] != steps[0] else []
    return {step: outcomes.get(step, NOT_TRIED) for step in steps}, said


def _run(
    command: list[str], environment: Mapping[str, str], seconds: float
) -> tuple[Outcome, str, str]:
    """How the process ended, as the outcome of the step that it did not answer; stdout, stderr."""
    out, silent = b"", False
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
                out += part
            else:
                silent = True
                process.kill()
        errors.seek(0)
        said, err = out.decode(errors="replace"), errors.read().decode(errors="replace")
    if silent:
        return Outcome(error=f"no answer in {seconds:g} s"), said, err
    return _ended(process.returncode, err), said, err


def _ended(code: int, stderr: str) -> Outcome:
    if code >= 0:
        last = stderr.strip().splitlines()[-1:] or [""]
        return Outcome(error=f"it ended the process with exit code {code}: {last[0]}".strip(": "))
    name = signal.Signals(-code).name
    meaning = {
        "SIGILL": "an instruction that this CPU does not have, or may not use here",
        "SIGKILL": "killed, which is how Linux ends a process when memory runs out",
    }.get(name, "it crashed")
    return Outcome(error=f"{name}: {meaning}", signal=name)
