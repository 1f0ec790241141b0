"""Real limits of a machine: CPU time and memory by control groups, a forbidden instruction."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

_TOP = Path("/sys/fs/cgroup")

ILLEGAL = """
import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(b"\\x0f\\x0b")  # ud2
ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
"""


@contextmanager
def limited(cores: float, memory: int) -> Iterator[list[str]]:
    """The beginning of a command line that limits the command to so many cores and bytes.

    Raises OSError if no control group can be created (no root, or mounted read-only).
    """
    with ExitStack() as stack:
        groups = []
        quota = int(cores * 100_000)
        if (_TOP / "cgroup.controllers").exists():  # version 2
            group = stack.enter_context(_group(_current_group("")))
            _write(group, {"cpu.max": f"{quota} 100000", "memory.max": str(memory)})
            groups.append(group)
        else:
            group = stack.enter_context(_group(_current_group("cpu")))
            _write(group, {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": str(quota)})
            groups.append(group)
            group = stack.enter_context(_group(_current_group("memory")))
            _write(group, {"memory.limit_in_bytes": str(memory)})
            groups.append(group)
        yield _joining(groups)


def _joining(groups: Sequence[Path]) -> list[str]:
    script = 'while [ "$1" != -- ]; do echo $$ > "$1/cgroup.procs"; shift; done; shift; exec "$@"'
    return ["sh", "-ec", script, "sh", *map(str, groups), "--"]


def _current_group(controller: str) -> Path:
    """This process's control group; the same limits apply to a group inside it."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return _TOP / controller / path.strip("/")
    raise OSError(f"no control group for {controller}")


@contextmanager
def _group(parent: Path) -> Iterator[Path]:
    group = parent / f"intel-ft-test-{os.getpid()}"
    group.mkdir()
    try:
        yield group
    finally:
        group.rmdir()


def _write(group: Path, values: dict[str, str]) -> None:
    for name, value in values.items():
        (group / name).write_text(value)
