"""Files at a URL (s3://, gs://, hf://, ...) through fsspec, fetched to the folder of cached data.

They are fetched once for each version of them.
"""

import glob
import logging
import re
from pathlib import Path, PurePosixPath
from typing import Any

from intel_ft.errors import EnvironmentProblem, UserError
from intel_ft.files import write_json
from intel_ft.plurals import count_of
from intel_ft.sources.cache_folder import DONE, complete_entry, entry_name, user_folder
from intel_ft.sources.files import data_type

_URL = re.compile(r"(?P<protocol>[a-z][a-z0-9+.-]*)://")
_ABOUT = ("README.md", "dataset_dict.json", "dataset_info.json", "state.json")

logger = logging.getLogger(__name__)


def is_url(source: str) -> bool:
    """Whether `source` is a URL such as s3://bucket/train.jsonl."""
    return _URL.match(source) is not None


def fetch(url: str) -> Path:
    """A local copy of the file or folder at `url`, or the pattern of those that it matches.

    file:// is the local path itself. Raises UserError if there is nothing, EnvironmentProblem if a
    package for the URL is not installed or the files cannot be fetched.
    """
    protocol = url.partition("://")[0]
    if protocol in ("file", "local"):
        return Path(url.partition("://")[2])
    try:
        import fsspec

        system, path = fsspec.core.url_to_fs(url)
    except ValueError as error:
        raise UserError(f"{url}: fsspec does not support {protocol}:// ({error})") from error
    except ImportError as error:
        raise EnvironmentProblem(f"{url}: a package is missing: {error}") from error
    try:
        return _fetch(url, system, path)
    except FileNotFoundError as error:
        raise UserError(f"{url}: no such file or folder") from error
    except (UserError, EnvironmentProblem):
        raise
    except Exception as error:  # each filesystem raises its own
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise EnvironmentProblem(
            f"{url}: cannot be fetched ({cause}): check the network, the credentials and the space"
            f" in {user_folder()}"
        ) from error


def _fetch(url: str, system: Any, path: str) -> Path:
    names, root = _names(system, path)
    if not names:
        raise UserError(f"{url}: no data files there")
    facts = {name: system.info(name) for name in names}
    versions = (f"{name} {sorted(map(str, facts[name].items()))}" for name in names)
    entry = user_folder() / entry_name("url", url, *versions)
    local = {name: entry / "files" / PurePosixPath(name).relative_to(root) for name in names}

    def copy() -> None:
        size = sum(facts[name].get("size") or 0 for name in names)
        logger.info("fetching %s: %s, %.1f MiB", url, count_of(len(names), "file"), size / 2**20)
        for name, target in local.items():
            if target.exists():
                continue  # whoever fetched before was interrupted
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f"{target.name}.partial")
            system.get_file(name, str(partial))
            partial.rename(target)
        write_json(entry / DONE, {"url": url})

    complete_entry(entry, copy)
    if glob.has_magic(path):
        return entry / "files" / "**" / "*"
    return local[names[0]] if names == [path] else entry / "files"


def _names(system: Any, path: str) -> tuple[list[str], PurePosixPath]:
    """The files to fetch, and the folder that their local names are relative to."""
    if glob.has_magic(path) and not system.exists(path):
        first = next(i for i, part in enumerate(PurePosixPath(path).parts) if glob.has_magic(part))
        root = PurePosixPath(*PurePosixPath(path).parts[:first])
        return sorted(name for name in system.glob(path) if system.isfile(name)), root
    if system.isfile(path):
        return [path], PurePosixPath(path).parent
    if not system.exists(path):
        raise FileNotFoundError(path)
    found = [name for name in system.find(path) if _belongs(PurePosixPath(name))]
    return sorted(found), PurePosixPath(path)


def _belongs(name: PurePosixPath) -> bool:
    return name.name in _ABOUT or data_type(Path(name)) is not None
