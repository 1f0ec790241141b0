"""Versions of installed Python distributions."""

from importlib.metadata import PackageNotFoundError, version


def installed(package: str) -> str | None:
    """The version of a distribution, without importing it; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
