"""What control groups, of either version, allow this process; called from distributed.topology and
backends.host.

Linux's documentation: admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst, scheduler/sched-bwc.rst. A
limit anywhere between the process's group and the top counts.
"""

from pathlib import Path

from intel_ft.host.procfs import kernel_text

_NO_LIMIT = 2**60  # version 1 writes the largest number of pages for "no limit"


def quota(root: Path = Path("/")) -> float | None:
    """Time on CPUs, in cores; None where it is not limited."""
    found = []
    for group in _groups(root, "cpu"):
        most, _, period = kernel_text(group / "cpu.max").partition(" ")
        if not most:
            most, period = (
                kernel_text(group / "cpu.cfs_quota_us"),
                kernel_text(group / "cpu.cfs_period_us"),
            )
        if most.strip().isdigit() and period.strip().isdigit():
            found.append(int(most) / int(period))
    return min(found, default=None)


def memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes; None where they are not limited."""
    return min((limit for limit, _ in _memory(root)), default=None)


def memory_room(root: Path = Path("/")) -> int | None:
    """Bytes below the nearest limit that are not in use; None where there is no limit. File pages
    that were not used lately count as free: the kernel drops them first.
    """
    return min((max(0, limit - used) for limit, used in _memory(root)), default=None)


def _memory(root: Path) -> list[tuple[int, int]]:
    """(limit, use) in bytes of each group that has a limit."""
    found = []
    for group in _groups(root, "memory"):
        limit = _number(group / "memory.max", group / "memory.limit_in_bytes")
        used = _number(group / "memory.current", group / "memory.usage_in_bytes")
        if limit is not None and limit < _NO_LIMIT:
            found.append((limit, (used or 0) - _droppable(group / "memory.stat")))
    return found


def _groups(root: Path, controller: str) -> list[Path]:
    """The folders of this process's group for `controller`, innermost first. In a container that
    shows only its own part, names from outside do not exist below the top.
    """
    mounted = root / "sys/fs/cgroup"
    inner = ""
    for line in kernel_text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):  # version 1, which comes first where both are
            mounted, inner = mounted / controller, path
            break
        if not controllers:
            inner = path
    found = [mounted / inner.strip("/")]
    while found[-1] != mounted and mounted in found[-1].parents:
        found.append(found[-1].parent)
    return found


def _droppable(stat: Path) -> int:
    """Bytes of inactive file pages, those of groups inside included."""
    values = dict(line.split(" ", 1) for line in kernel_text(stat).splitlines() if " " in line)
    return int(values.get("total_inactive_file", values.get("inactive_file", "0")))


def _number(*paths: Path) -> int | None:
    texts = [kernel_text(path).strip() for path in paths]
    return next((int(text) for text in texts if text.isdigit()), None)
