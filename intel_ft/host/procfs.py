"""Reading files of /proc and /sys. Imports nothing heavy."""

from pathlib import Path


def kernel_text(path: Path) -> str:
    """The file's content; empty on an older kernel, or in a container that hides the file."""
    try:
        return path.read_text()
    except OSError:
        return ""
