"""The one exception family: each class is an exit code; called from everywhere.

Raise with the fact and the remedy in one line. `intel_ft.cli.main` turns it into that line on
stderr and the exit code; nothing else catches these.
"""


class IntelFTError(Exception):
    """The run failed for a reason we can name (exit code 1)."""

    exit_code = 1


class UserError(IntelFTError):
    """Bad input: config, data, model folder or arguments (exit code 2)."""

    exit_code = 2


class EnvironmentProblem(IntelFTError):
    """The machine or the installation lacks something (exit code 3)."""

    exit_code = 3


class GateRefused(IntelFTError):
    """A quality gate measured the result and said no (exit code 4)."""

    exit_code = 4


class FailedElsewhere(IntelFTError):
    """Another rank failed and says why (its exit code)."""

    def __init__(self, exit_code: int, rank: int) -> None:
        super().__init__(f"rank {rank} failed")
        self.exit_code = exit_code


class Stopped(IntelFTError):
    """A signal ended the run after its state was saved (exit code 128 + signal number)."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
