"""A value that was chosen automatically, with its reason.

Decisions are printed once at the start of a run and kept in environment.json.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Decision:
    """name: the setting, as in the config; value: the one in use; reason: why it was chosen."""

    name: str
    value: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} = {self.value} ({self.reason})"
