"""Several datasets of another trainer's config become the sources of data.train."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from intel_ft.recipes.translation import Translation

_OF_A_SOURCE = ("split", "format", "columns", "template", "on_long", "weight")
"""Keys of our data section that a source may have of its own, and its weight."""


def numbers(t: Translation, old: str) -> list[int]:
    """The numbers of the datasets in a list `old` of mappings, whose keys are `old[0].path`."""
    found = (re.match(rf"{re.escape(old)}\[(\d+)\]", key) for key in t.left)
    return sorted({int(match[1]) for match in found if match})


@contextmanager
def source(t: Translation, name: str) -> Iterator[dict[str, Any]]:
    """Collect what is put into the data section meanwhile, for one dataset.

    name: what the lists call it in place of data.
    """
    whole, found = t.config.get("data", {}), dict[str, Any]()
    t.config["data"] = found
    t.data_name = name
    try:
        yield found
    finally:
        t.config["data"], t.data_name = whole, "data"


def put_sources(t: Translation, old: str, found: list[dict[str, Any]]) -> None:
    """Make the collected datasets data.train: one as it is, several as a list.

    What a source cannot have of its own applies to all, and is listed where they differ.
    """
    found = [one for one in found if one.get("train")]
    if not found:
        return
    data = t.config.setdefault("data", {})
    if len(found) == 1:
        data |= found[0]
        return
    data["train"] = [
        {"path": one["train"]} | {key: one[key] for key in _OF_A_SOURCE if key in one}
        for one in found
    ]
    for key in sorted({key for one in found for key in one} - {"train", *_OF_A_SOURCE}):
        values = [one.get(key) for one in found]
        if all(value == values[0] for value in values):
            data[key] = values[0]
        else:
            t.cannot_carry(old, values, f"data.{key} is the same for all sources: set it")


_LOADERS = ("json", "csv", "parquet", "text", "arrow")
"""Names that `datasets.load_dataset` takes in place of a dataset, for files."""


def places(t: Translation, first: str) -> list[str]:
    """Where the dataset is whose keys begin with `first`: a Hub id, files, or nothing."""
    path, files = t.take(f"{first}.path"), t.take(f"{first}.data_files")
    name, revision = t.take(f"{first}.name"), t.take(f"{first}.revision")
    named = files if isinstance(files, list) else [files] if files else []
    at = f"@{revision}" if revision else ""
    if not named:
        return [f"{path}{at}:{name}" if name else f"{path}{at}"] if path else []
    if name:
        t.cannot_carry(f"{first}.name", name, "data_files names the files that are read")
    if path is None or path in _LOADERS or Path(str(path)).suffix:
        return [str(file) for file in named]
    folder = str(path)
    if not folder.startswith((".", "/", "~")) and not Path(folder).is_dir():
        folder = f"hf://datasets/{path}{at}"
    return [f"{folder}/{file}" for file in named]
