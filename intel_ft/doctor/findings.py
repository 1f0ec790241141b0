"""What is wrong, ranked, each with what was seen and what to do; called from
insight.doctor.examine and hosts.
"""

from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """An error keeps runs from working, a warning makes them slow or fails later, a note is good to
    know. `do` is empty where nothing is to be done.
    """

    level: Level
    seen: str
    do: str


def ranked(findings: list[Finding]) -> list[Finding]:
    """Errors first; within a level in the order given."""
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))
