"""A finding of the doctor: its level, what was observed, and what to do about it."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """What was observed (`seen`), and the remedy (`do`), which is empty if there is none.

    An error prevents runs from working, a warning makes them slow or fail later, a note is
    information.
    """

    level: Level
    seen: str
    do: str


def ranked(findings: list[Finding]) -> list[Finding]:
    """Errors first, then warnings, then notes; the order within a level is kept."""
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))
