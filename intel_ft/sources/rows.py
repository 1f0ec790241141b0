"""Reads rows from a file, a folder or the Hub, through `datasets`.

Local files are read into memory each time, through a temporary folder: changes are always seen,
processes do not share a cache, and no files are left behind. Large ones are converted into a folder
that the caller gives, and mapped into memory from there. Compressed files are unpacked into that
folder. Which files of a folder are read is in sources.files, and how files at a URL are fetched in
sources.remote. Only after `datasets` has failed on a file is the cause determined
(sources.read_errors).
"""

import errno
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intel_ft.errors import EnvironmentProblem, UserError, missing_package
from intel_ft.sources.csv_header import read_header
from intel_ft.sources.files import DataFiles, data_type, find_files, is_pattern, require_one_type
from intel_ft.sources.read_errors import problem_at_start, problem_with
from intel_ft.sources.read_files import (
    builder_of,
    cause_of,
    innermost,
    keep_text,
    load_files,
    quiet_datasets,
)
from intel_ft.sources.remote import fetch, is_url

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from datasets import Dataset

_HUB_ID = re.compile(
    r"(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?(?::(?P<config>[\w.-]+))?"
)
_BATCH = 10_000  # rows converted to Python objects at a time


@dataclass(frozen=True)
class Rows:
    """A table of examples whose format is not yet determined.

    columns: names of all columns; nested: those that hold lists or mappings instead of text. A cell
    that a JSON row does not have is None. files: those that were read, empty if the rows come from
    the Hub. notes: what was chosen and what was not, for the user; other_splits: splits that the
    source has and that were not read; first: the number of the table's first row in the source,
    from 0; is_part: whether the source has more rows than these; numbers: the number of each row in
    the source, from 0, if they are not consecutive.
    """

    source: str
    split: str
    columns: tuple[str, ...]
    nested: tuple[str, ...]
    files: tuple[Path, ...]
    table: "Dataset"
    notes: tuple[str, ...] = ()
    other_splits: tuple[str, ...] = ()
    first: int = 0
    is_part: bool = False
    numbers: "npt.NDArray[np.int64] | None" = None

    def __len__(self) -> int:
        return len(self.table)

    def part(self, start: int, end: int) -> "Rows":
        """The rows from `start` to `end - 1`; none is copied."""
        table = self.table.select(range(start, min(end, len(self))))
        return replace(self, table=table, first=self.first + start, is_part=True)

    def sample(self, numbers: "npt.NDArray[np.int64]") -> "Rows":
        """The rows with these numbers (from 0) of a whole source."""
        table = self.table.select(numbers.tolist())
        return replace(self, table=table, is_part=True, numbers=numbers)

    @property
    def name(self) -> str:
        """The source, with the numbers of the rows if they are a part of it."""
        if not self.is_part:
            return self.source
        if self.numbers is not None:
            return f"{self.source}, {len(self):,} of its rows"
        return f"{self.source}, rows {self.first + 1:,} to {self.first + len(self):,}"

    def cells(self, columns: Sequence[str | None]) -> Iterator[tuple[Any, ...]]:
        """Each row's values in `columns`, in the order of the rows; None where absent."""
        present = self.table.select_columns([name for name in self.columns if name in columns])
        for start in range(0, len(self), _BATCH):
            batch = present[start : start + _BATCH]
            absent = [None] * min(_BATCH, len(self) - start)
            yield from zip(*(batch.get(name, absent) for name in columns), strict=True)

    def where(self, index: int) -> str:
        """File and row number (from 1) of row `index` (from 0), for error messages."""
        number = (self.first + index if self.numbers is None else int(self.numbers[index])) + 1
        if not self.files or not re.fullmatch(r"[\w.]+", self.split):  # the Hub, or a slice
            split = "" if self.split == "train" else f" of split {self.split}"
            return f"{self.source} row {number}{split}"
        for file, count in zip(self.files, self._rows_of_files, strict=False):
            if number <= count:
                return f"{file} row {number}"
            number -= count
        return f"{self.files[-1]} row {number}"

    @cached_property
    def _rows_of_files(self) -> list[int]:
        """Rows of each file but the last, which are counted by reading them again."""
        with tempfile.TemporaryDirectory(prefix="intel-ft-") as folder:
            return [
                len(load_files({"train": (file,)}, "train", Path(folder, str(place))))
                for place, file in enumerate(self.files[:-1])
            ]


def load_rows(source: str, split: str = "train", *, folder: Path | None = None) -> Rows:
    """Read the rows of `source`, a local path, a URL or a Hub id.

    source: a file, a folder of files, a pattern such as `data/*.jsonl`, a URL of one of these, or a
    Hub id (`org/name`, or `org/name@revision:config` with both or one of them). A .json file
    is an array of objects, or one object per line; a .txt file gives one `text` row per paragraph,
    and paragraphs are separated by empty lines; .csv and .tsv cells are always text. split: a
    split's name, a slice of it such as `train[:1000]`, or several joined by `+`. A file that is
    named itself only has the split `train`; a folder's files belong to the splits that their names
    say (data.files). folder: where local files are converted to, and mapped into memory from;
    without it they are read into memory.

    Raises UserError (one line: the file and what to do) if there is nothing to read or it cannot
    be read, EnvironmentProblem if the Hub cannot be reached or a package is missing.
    """
    found = local_files(source, split)
    rows = _from_hub(source, split) if found is None else read_local(found, folder)
    if len(rows) == 0:
        raise UserError(f"{source}: has no rows: add at least one example")
    return rows


@dataclass(frozen=True)
class LocalFiles:
    """The files of a source that are read. splits: the names in `split`, and those in `found`."""

    source: str
    split: str
    found: DataFiles
    splits: dict[str, str]

    @property
    def chosen(self) -> dict[str, tuple[Path, ...]]:
        """The files that are read, by the names in `split`."""
        return {name: self.found.splits[here] for name, here in self.splits.items()}

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that are read."""
        return tuple(file for part in self.chosen.values() for file in part)


def local_files(source: str, split: str) -> LocalFiles | None:
    """The files of a local source or of a URL, which are fetched; None for a Hub id.

    Raises UserError if there are none, EnvironmentProblem if they cannot be fetched.
    """
    path = fetch(source) if is_url(source) else Path(source).expanduser()
    if not (path.exists() or is_pattern(path)):
        if data_type(path) or not _HUB_ID.fullmatch(source):
            raise UserError(f"{source}: no such file or folder, and not a Hub id such as org/name")
        return None
    found = find_files(path)
    names = [part.partition("[")[0].strip() for part in split.split("+")]
    here = {name: _present(source, path, found, name) for name in names}
    chosen = LocalFiles(source, split, found, here)
    require_one_type(found.root, chosen.files)
    return chosen


def check_files(files: Sequence[Path]) -> None:
    """Raise UserError for a file whose first bytes show that it cannot be read."""
    for file in files:
        if file.stat().st_size == 0:
            raise UserError(f"{file}: is empty: add at least one example")
        if problem := problem_at_start(file):
            raise UserError(f"{file}: {problem}")


def read_local(chosen: LocalFiles, folder: Path | None) -> Rows:
    """The rows of these files; see `load_rows`."""
    source, split, found, files = chosen.source, chosen.split, chosen.found, chosen.files
    check_files(files)
    try:
        table = load_files(chosen.chosen, split, folder)
    except UserError:
        raise
    except Exception as error:  # `datasets` passes on whatever its readers raise
        if missing := missing_package(error):
            raise missing from error
        if getattr(innermost(error), "errno", None) == errno.ENOSPC:
            raise EnvironmentProblem(
                f"{source}: no space left in {folder or tempfile.gettempdir()}, where data is"
                " unpacked and converted: free some, or set"
                f" {'TMPDIR' if folder is None else 'data.cache'} to another folder"
            ) from error
        for file in files:
            if problem := problem_with(file):
                raise UserError(f"{file}: {problem}") from error
        if "corresponds to no data" in str(error):
            raise UserError(f"{source}: has no rows: add at least one example") from error
        raise UserError(f"{source}: {_no_table(cause_of(error))}") from error
    read = list(chosen.splits.values())
    notes = []
    if left_out := found.describe_all_but(read):
        notes.append(f"split {found.describe(read)}; not used: {left_out}")
    if builder_of(files[0]) == "csv" and (separator := read_header(files[0])[0]) in ";|":
        notes.append(f"the cells of {files[0].name} are separated by {separator!r}")
    others = tuple(name for name in found.splits if name not in read)
    return rows_of(source, split, table, files, notes, others)


def _no_table(cause: str) -> str:
    """Why files cannot be read as a table, from what `datasets` or Arrow raised."""
    if twice := re.search(r"Column\(/?(.+?)\) was specified twice in row (\d+)", cause):
        return f"a row has the key {twice[1]} twice: keep one of them"
    if "column names don't match" in cause:
        return "its files have different columns: name one file, or give them the same columns"
    return f"cannot be read as a table ({cause})"


def _present(source: str, path: Path, found: DataFiles, name: str) -> str:
    """The name under which the split is in `found`."""
    if (here := found.find(name)) is not None:
        return here
    if not path.is_dir():
        raise UserError(
            f"{source}: no split {name!r}: a local file only has the split train: set the split"
            " (data.split, data.eval_split or --split) to train, or a slice such as train[:100]"
        )
    raise UserError(
        f"{source}: no split {name!r} in this folder, which has {found.describe_all_but(())}: set"
        " the split (data.split, data.eval_split or --split), or name one file of the folder"
    )


def hub_arguments(source: str) -> dict[str, str | None]:
    """The arguments of load_dataset that a Hub id stands for."""
    match = _HUB_ID.fullmatch(source)
    assert match is not None  # local_files has checked it
    return {"path": match["name"], "name": match["config"], "revision": match["revision"]}


def rows_of(
    source: str,
    split: str,
    table: "Dataset",
    files: tuple[Path, ...] = (),
    notes: Sequence[str] = (),
    other_splits: Sequence[str] = (),
    first: int = 0,
) -> Rows:
    """The rows of a table; see Rows."""
    nested = tuple(name for name, kind in table.features.items() if _is_nested(kind))
    columns = tuple(table.column_names)
    return Rows(
        source,
        split,
        columns,
        nested,
        files,
        table,
        tuple(notes),
        tuple(other_splits),
        first,
        is_part=first > 0,
    )


def _is_nested(kind: object) -> bool:
    return isinstance(kind, dict) or hasattr(kind, "feature")  # a mapping, or a list of features


def _from_hub(source: str, split: str) -> Rows:
    match = _HUB_ID.fullmatch(source)
    assert match is not None  # load_rows has checked it
    with quiet_datasets() as datasets:
        import httpx

        try:
            table = keep_text(
                partial(
                    datasets.load_dataset,
                    match["name"],
                    match["config"],
                    split=split,
                    revision=match["revision"],
                )
            )
        except datasets.exceptions.DatasetNotFoundError as error:
            raise UserError(
                f"{source}: no such local file and no such dataset on the Hub; if the dataset is"
                " private or gated, log in with `hf auth login`"
            ) from error
        except (OSError, httpx.HTTPError) as error:
            raise _unreachable(source, error) from error
        except Exception as error:  # readers, scripts, splits and configs raise any type
            if missing := missing_package(error):
                raise missing from error
            # huggingface_hub 1.21 retries on a client it has closed, which hides the real cause.
            if "client has been closed" in str(error):
                raise _unreachable(source, OSError("no connection")) from error
            if "Config name is missing" in str(error):
                raise UserError(
                    f"{source}: {cause_of(error)} (write it as org/name:config)"
                ) from error
            raise UserError(
                f"{source}: cannot be loaded from the Hub ({cause_of(error)})"
            ) from error
    others = [name for name in table.info.splits or () if name not in re.split(r"\W+", split)]
    notes = [f"split {split}; not used: split {', '.join(others)}"] if others else []
    return rows_of(source, split, table, (), notes, others)


def _unreachable(source: str, error: Exception) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"{source}: no such local file, and the Hub cannot be reached ({cause_of(error)}): check"
        " the network and HF_HUB_OFFLINE, or use a local file"
    )
