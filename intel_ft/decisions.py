"""A value that was decided for the user, with its reason: printed once and kept in
environment.json. Called from backends, models and training.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Decision:
    """`name` as the config spells it, the value in use, and why."""

    name: str
    value: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} = {self.value} ({self.reason})"
