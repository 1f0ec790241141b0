"""The exception family of the package: each class stands for an exit code.

Raise one with the fact and the remedy in one line. `intel_ft.cli.main` prints that line on stderr
and exits with the code; nothing else catches these.
"""

import sys


class IntelFTError(Exception):
    """The run failed for a known reason (exit code 1)."""

    exit_code = 1


class UserError(IntelFTError):
    """Bad input: config, data, model folder or arguments (exit code 2)."""

    exit_code = 2


class EnvironmentProblem(IntelFTError):
    """The machine or the installation lacks something (exit code 3)."""

    exit_code = 3


class MissingPackage(EnvironmentProblem):
    """A Python package is not installed or cannot be imported (exit code 3)."""


class GateRefused(IntelFTError):
    """A quality gate measured the result and rejected it (exit code 4)."""

    exit_code = 4


class FailedElsewhere(IntelFTError):
    """Another rank failed and reports the reason (that rank's exit code)."""

    def __init__(self, exit_code: int, rank: int) -> None:
        super().__init__(f"rank {rank} failed")
        self.exit_code = exit_code


class Stopped(IntelFTError):
    """A signal ended the run after its state was saved (exit code 128 + signal number)."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


_DISTRIBUTIONS = {"yaml": "PyYAML"}  # where pip's name differs from the module's


def missing_package(error: BaseException) -> MissingPackage | None:
    """The MissingPackage to raise if `error` stems from a failed import; None otherwise.

    Follows explicit causes, because libraries wrap the ImportErrors of what they import.
    """
    failed: ImportError | None = None
    cause: BaseException | None = error
    while cause is not None:
        failed = cause if isinstance(cause, ImportError) else failed
        cause = cause.__cause__
    if failed is None:
        return None
    module = failed.name or ""
    package, dot, _ = module.partition(".")
    if package == "intel_ft":
        return None  # a defect of this package, not of the installation
    if isinstance(failed, ModuleNotFoundError) and package and not (dot and package in sys.modules):
        distribution = _DISTRIBUTIONS.get(package, package)
        return MissingPackage(
            f"the Python package {package} is not installed: run pip install {distribution}"
        )
    text = " ".join(str(failed).split())[:300]
    return MissingPackage(
        f"a Python package is missing or has the wrong version ({text}): install the versions that"
        " intel_ft requires"
    )
