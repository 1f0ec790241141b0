"""What oneCCL needs from the environment: what is wrong with it, by name, before it fails unnamed.

Values and defaults: oneCCL's developer guide, Environment Variables.
"""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from intel_ft.distributed.oneccl.library import under_intel_mpi
from intel_ft.plurals import count_of

SHARED_MEMORY = Path("/dev/shm")
_MIB = 2**20
_PER_PAIR, _PER_HOST = 2.1 * _MIB, _MIB
"""Bytes of shared memory: measured with 2 to 8 ranks of Intel MPI 2021.18 on one host."""

_LOG_LEVELS = ("error", "warn", "info", "debug", "trace")
_NUMBERS = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")
_CHANGED = re.compile(rb"\|CCL_WARN\| value of CCL_LOG_LEVEL changed")
_PREFIXES = ("CCL_", "FI_", "I_MPI_FABRICS", "I_MPI_OFI_")


def why_wrong() -> str | None:
    """The variable or the limit with which oneCCL cannot start on this host, and a remedy; or None.

    Call it before `set_environment`, with LOCAL_WORLD_SIZE set.
    """
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return _wrong_variable(local_size) or (_too_small(local_size) if under_intel_mpi() else None)


def _wrong_variable(local_size: int) -> str | None:
    count = os.environ.get("CCL_WORKER_COUNT", "1")
    if not count.isdecimal() or int(count) < 1:
        return (
            f"CCL_WORKER_COUNT={count} is not a number of threads: set it to 1 or more, or unset it"
        )
    level = os.environ.get("CCL_LOG_LEVEL", "error")
    if level.lower() not in _LOG_LEVELS:
        return f"CCL_LOG_LEVEL={level} is not one of {', '.join(_LOG_LEVELS)}: correct or unset it"
    cores, workers = os.environ.get("CCL_WORKER_AFFINITY", "auto"), local_size * int(count)
    if cores != "auto" and (not _NUMBERS.fullmatch(cores) or _length(cores) < workers):
        return (
            f"CCL_WORKER_AFFINITY={cores} does not name {count_of(workers, 'core')}, one for "
            "each worker of the ranks on this host: correct or unset it"
        )
    return None


def _length(cores: str) -> int:
    ranges = (part.partition("-") for part in cores.split(","))
    return sum(int(last or first) - int(first) + 1 for first, _, last in ranges)


def _too_small(local_size: int) -> str | None:
    """Pages of shared memory are taken when they are written: then a rank is killed, by SIGBUS."""
    try:
        system = os.statvfs(SHARED_MEMORY)
    except OSError:
        return None
    size = system.f_frsize * system.f_blocks
    needed = _PER_HOST + _PER_PAIR * local_size * (local_size - 1)
    if size >= needed:
        return None
    option = f"--shm-size={max(64, 2 ** int(needed / _MIB).bit_length())}m"
    return (
        f"{SHARED_MEMORY} has {size / _MIB:.0f} MiB, and Intel MPI needs {needed / _MIB:.0f} for "
        f"{count_of(local_size, 'rank')} on one host: start the container with {option}, or use "
        "gloo"
    )


def chosen_variables() -> dict[str, str]:
    """The variables of oneCCL, libfabric and Intel MPI's fabrics that are set."""
    return {name: value for name, value in os.environ.items() if name.startswith(_PREFIXES)}


@contextmanager
def errors_name(variables: dict[str, str]) -> Iterator[None]:
    """Name these variables in an error of the block, which oneCCL itself seldom does."""
    try:
        yield
    except RuntimeError as error:
        if not variables:
            raise
        names = ", ".join(f"{name}={value}" for name, value in sorted(variables.items()))
        raise RuntimeError(
            f"{error}; set in this environment: {names}: unset the wrong one"
        ) from error


@contextmanager
def lines_to_stderr() -> Iterator[None]:
    """Have what oneCCL prints to stdout on stderr, without its line that the log level is set.

    It prints that line before it heeds the level, and stdout is a program's result.
    """
    sys.stdout.flush()
    stdout, printed = os.dup(1), os.memfd_create("oneccl")
    os.dup2(printed, 1)
    try:
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
        os.lseek(printed, 0, os.SEEK_SET)
        with os.fdopen(printed, "rb") as file:
            for line in file:
                if not _CHANGED.search(line):
                    os.write(2, line)
