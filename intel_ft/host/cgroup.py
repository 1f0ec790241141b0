"""CPU and memory limits of this process's control groups, version 1 or 2.

Linux's documentation: admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst, scheduler/sched-bwc.rst. A
limit counts wherever it is set between the process's group and the root group.
"""

from pathlib import Path

from intel_ft.host.procfs import kernel_text

_NO_LIMIT = 2**60  # version 1 writes the largest number of pages for "no limit"


def quota(root: Path = Path("/")) -> float | None:
    """CPU time, in cores; None if unlimited."""
    limits = []
    for group in _groups(root, "cpu"):
        most, _, period = kernel_text(group / "cpu.max").partition(" ")
        if not most:
            most, period = (
                kernel_text(group / "cpu.cfs_quota_us"),
                kernel_text(group / "cpu.cfs_period_us"),
            )
        if most.strip().isdigit() and period.strip().isdigit():
            limits.append(int(most) / int(period))
    return min(limits, default=None)


def memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes; None if unlimited."""
    return min((limit for limit, _ in _memory(root)), default=None)


def memory_room(root: Path = Path("/")) -> int | None:
    """Unused bytes below the nearest limit; None if there is no limit.

    Inactive file pages count as free, because the kernel drops them first.
    """
    return min((max(0, limit - used) for limit, used in _memory(root)), default=None)


def _memory(root: Path) -> list[tuple[int, int]]:
    """(limit, use) in bytes of each group that has a limit."""
    limits = []
    for group in _groups(root, "memory"):
        limit = _number(group / "memory.max", group / "memory.limit_in_bytes")
        used = _number(group / "memory.current", group / "memory.usage_in_bytes")
        if limit is not None and limit < _NO_LIMIT:
            limits.append((limit, (used or 0) - _droppable(group / "memory.stat")))
    return limits


def _groups(root: Path, controller: str) -> list[Path]:
    """The folders of this process's group for `controller` and its parents, innermost first.

    A container that shows only its own subtree lacks the folders outside it.
    """
    mounted = root / "sys/fs/cgroup"
    inner = ""
    for line in kernel_text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):  # version 1, listed first where both exist
            mounted, inner = mounted / controller, path
            break
        if not controllers:
            inner = path
    groups = [mounted / inner.strip("/")]
    while groups[-1] != mounted and mounted in groups[-1].parents:
        groups.append(groups[-1].parent)
    return groups


def _droppable(stat: Path) -> int:
    """Bytes of inactive file pages, nested groups included."""
    values = dict(line.split(" ", 1) for line in kernel_text(stat).splitlines() if " " in line)
    return int(values.get("total_inactive_file", values.get("inactive_file", "0")))


def _number(*paths: Path) -> int | None:
    texts = [kernel_text(path).strip() for path in paths]
    return next((int(text) for text in texts if text.isdigit()), None)
