"""Which version of a distribution is installed; called from backends, insight and
distributed.launch."""

from importlib.metadata import PackageNotFoundError, version


def installed(package: str) -> str | None:
    """The version of an installed distribution, or None; nothing of it is imported."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
