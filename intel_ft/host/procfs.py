"""Reading /proc and /sys; called from distributed and insight.doctor. Imports nothing heavy."""

from pathlib import Path


def kernel_text(path: Path) -> str:
    """What the file says; nothing on an older kernel, or in a container that hides it."""
    try:
        return path.read_text()
    except OSError:
        return ""
