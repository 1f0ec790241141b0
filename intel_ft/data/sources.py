"""Reads rows from a file, a folder or the Hub, through `datasets`.

Local files are read into memory each time, through a temporary cache folder: changes are always
seen, processes do not share a cache, and no files are left behind. Compressed files are unpacked
into that folder. Which files of a folder are read is in data.files. Only after `datasets` has
failed on a file is the cause determined (data.read_errors).
"""

import errno
import logging
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intel_ft.data.compressed import unpack
from intel_ft.data.csv_header import read_header
from intel_ft.data.files import (
    BUILDERS,
    DataFiles,
    data_type,
    find_files,
    inner_type,
    require_one_type,
)
from intel_ft.data.read_errors import problem_at_start, problem_with
from intel_ft.errors import EnvironmentProblem, UserError, missing_package

if TYPE_CHECKING:
    from datasets import Dataset

_HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+))?")
_BATCH = 10_000  # rows converted to Python objects at a time


@dataclass(frozen=True)
class Rows:
    """A table of examples whose format is not yet determined.

    columns: names of all columns; nested: those that hold lists or mappings instead of text. A cell
    that a JSON row does not have is None. files: those that were read, empty if the rows come from
    the Hub. notes: what was chosen and what was not, for the user; other_splits: splits that the
    source has and that were not read.
    """

    source: str
    split: str
    columns: tuple[str, ...]
    nested: tuple[str, ...]
    files: tuple[Path, ...]
    table: "Dataset"
    notes: tuple[str, ...] = ()
    other_splits: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.table)

    def cells(self, columns: Sequence[str | None]) -> Iterator[tuple[Any, ...]]:
        """Each row's values in `columns`, in the order of the rows; None where absent."""
        present = self.table.select_columns([name for name in self.columns if name in columns])
        for start in range(0, len(self), _BATCH):
            batch = present[start : start + _BATCH]
            absent = [None] * min(_BATCH, len(self) - start)
            yield from zip(*(batch.get(name, absent) for name in columns), strict=True)

    def where(self, index: int) -> str:
        """File and row number (from 1) of row `index` (from 0), for error messages."""
        number = index + 1
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
        return [len(_load_files({"train": (file,)}, "train")) for file in self.files[:-1]]


def load_rows(source: str, split: str = "train") -> Rows:
    """Read the rows of `source`, a local path or a Hub id.

    source: a file, a folder of files, or a Hub id (`org/name`, or `org/name:config`). A .json file
    is an array of objects, or one object per line; a .txt file gives one `text` row per paragraph,
    and paragraphs are separated by empty lines; .csv and .tsv cells are always text. split: a
    split's name, a slice of it such as `train[:1000]`, or several joined by `+`. A file that is
    named itself only has the split `train`; a folder's files belong to the splits that their names
    say (data.files).

    Raises UserError (one line: the file and what to do) if there is nothing to read or it cannot
    be read, EnvironmentProblem if the Hub cannot be reached or a package is missing.
    """
    path = Path(source).expanduser()
    if path.exists():
        rows = _local(source, path, split)
    elif data_type(path) or not _HUB_ID.fullmatch(source):
        raise UserError(f"{source}: no such file or folder, and not a Hub id such as org/name")
    else:
        rows = _from_hub(source, split)
    if len(rows) == 0:
        raise UserError(f"{source}: has no rows: add at least one example")
    return rows


def _local(source: str, path: Path, split: str) -> Rows:
    found = find_files(path)
    names = [part.partition("[")[0].strip() for part in split.split("+")]
    here = {name: _present(source, path, found, name) for name in names}
    chosen = {name: found.splits[split_here] for name, split_here in here.items()}
    files = tuple(file for part in chosen.values() for file in part)
    require_one_type(path, files)
    for file in files:
        if file.stat().st_size == 0:
            raise UserError(f"{file}: is empty: add at least one example")
        if problem := problem_at_start(file):
            raise UserError(f"{file}: {problem}")
    try:
        table = _load_files(chosen, split)
    except UserError:
        raise
    except Exception as error:  # `datasets` passes on whatever its readers raise
        if missing := missing_package(error):
            raise missing from error
        if getattr(_innermost(error), "errno", None) == errno.ENOSPC:
            raise EnvironmentProblem(
                f"{source}: no space left in {tempfile.gettempdir()}, where data is unpacked and"
                " converted: free some, or set TMPDIR to another folder"
            ) from error
        for file in files:
            if problem := problem_with(file):
                raise UserError(f"{file}: {problem}") from error
        if "corresponds to no data" in str(error):
            raise UserError(f"{source}: has no rows: add at least one example") from error
        raise UserError(f"{source}: cannot be read as a table ({_cause(error)})") from error
    read = list(here.values())
    notes = []
    if left_out := found.describe_all_but(read):
        notes.append(f"split {found.describe(read)}; not used: {left_out}")
    if _builder(files[0]) == "csv" and (separator := read_header(files[0])[0]) in ";|":
        notes.append(f"the cells of {files[0].name} are separated by {separator!r}")
    others = tuple(name for name in found.splits if name not in read)
    return _rows(source, split, table, files, notes, others)


def _present(source: str, path: Path, found: DataFiles, name: str) -> str:
    """The name under which the split is in `found`."""
    if (here := found.find(name)) is not None:
        return here
    if path.is_file():
        raise UserError(
            f"{source}: no split {name!r}: a local file only has the split train (or a slice such"
            " as train[:100])"
        )
    raise UserError(
        f"{source}: no split {name!r} in this folder, which has {found.describe_all_but(())}: set"
        " the split (data.split, data.eval_split or --split), or name one file of the folder"
    )


def _rows(
    source: str,
    split: str,
    table: "Dataset",
    files: tuple[Path, ...],
    notes: Sequence[str],
    other_splits: Sequence[str],
) -> Rows:
    nested = tuple(name for name, kind in table.features.items() if _is_nested(kind))
    columns = tuple(table.column_names)
    return Rows(source, split, columns, nested, files, table, tuple(notes), tuple(other_splits))


def _is_nested(kind: object) -> bool:
    return isinstance(kind, dict) or hasattr(kind, "feature")  # a mapping, or a list of features


def _load_files(files: Mapping[str, tuple[Path, ...]], split: str) -> "Dataset":
    """Rows of `split`, a name or expression of the names in `files`, which are of one type."""
    first = next(iter(files.values()))[0]
    builder = _builder(first)
    with _quiet_datasets() as datasets, tempfile.TemporaryDirectory(prefix="intel-ft-") as cache:
        unpacked = Path(cache) / "unpacked"
        unpacked.mkdir()

        def load(**options: Any) -> "Dataset":
            return datasets.load_dataset(
                builder,
                data_files=paths,
                split=split,
                cache_dir=cache,
                keep_in_memory=True,
                **options,
            )

        paths = {name: [str(unpack(f, unpacked)) for f in part] for name, part in files.items()}
        if builder == "csv":
            return load(**_csv_options([file for part in files.values() for file in part]))
        if builder == "text":
            return _whole_paragraphs(load(sample_by="paragraph", encoding="utf-8-sig"))
        if builder != "json":
            return load()
        # Rows of certain columns would be taken for logs of coding agents and converted.
        table = _keep_text(lambda **options: load(parse_agent_traces=False, **options))
        table.data.validate(full=True)  # Arrow's JSON reader accepts invalid UTF-8
        return table


def _keep_text(load: Callable[..., "Dataset"]) -> "Dataset":
    """What `load` gives, loaded again where a reader made numbers or dates of text."""
    import datasets

    table = load()
    if table.info.builder_name == "csv":  # 007 would be 7, and NA nothing
        texts = {name: datasets.Value("string") for name in table.column_names}
        return load(features=datasets.Features(texts), keep_default_na=False)
    if table.info.builder_name == "json" and "timestamp" in str(table.features):
        texts = {
            name: datasets.Json() if "timestamp" in str(kind) else kind
            for name, kind in table.features.items()
        }
        return load(features=datasets.Features(texts))
    return table


def _builder(file: Path) -> str:
    return BUILDERS[inner_type(file)]


def _csv_options(files: Sequence[Path]) -> dict[str, Any]:
    """Reads all cells as strings: otherwise answers such as 42 would become numbers."""
    import datasets

    separator, header = read_header(files[0])
    for file in files[1:]:
        if (other := read_header(file)[0]) != separator:
            raise UserError(
                f"{file}: its cells are separated by {other!r}, those of {files[0].name} by"
                f" {separator!r}: write both alike"
            )
    if len(set(header)) < len(header):
        raise ValueError("duplicate column name")  # pandas would silently rename the second one
    features = datasets.Features({name: datasets.Value("string") for name in header}) or None
    return {"keep_default_na": False, "index_col": False, "sep": separator, "features": features}


def _whole_paragraphs(table: "Dataset") -> "Dataset":
    """Drops blank paragraphs and the newlines left by several consecutive empty lines."""
    import datasets

    texts = [text.strip("\n") for text in table["text"]]
    return datasets.Dataset.from_dict({"text": [text for text in texts if text.strip()]})


def _from_hub(source: str, split: str) -> Rows:
    match = _HUB_ID.fullmatch(source)
    assert match is not None  # load_rows has checked it
    with _quiet_datasets() as datasets:
        import httpx

        try:
            table = _keep_text(
                partial(datasets.load_dataset, match["name"], match["config"], split=split)
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
                    f"{source}: {_cause(error)} (write it as org/name:config)"
                ) from error
            raise UserError(f"{source}: cannot be loaded from the Hub ({_cause(error)})") from error
    others = [name for name in table.info.splits or () if name not in re.split(r"\W+", split)]
    notes = [f"split {split}; not used: split {', '.join(others)}"] if others else []
    return _rows(source, split, table, (), notes, others)


def _unreachable(source: str, error: Exception) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"{source}: no such local file, and the Hub cannot be reached ({_cause(error)}): check the"
        " network and HF_HUB_OFFLINE, or use a local file"
    )


def _cause(error: BaseException) -> str:
    """Type and text of the innermost exception, on one line."""
    error = _innermost(error)
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _innermost(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@contextmanager
def _quiet_datasets() -> Iterator[Any]:
    """Yield the `datasets` module with progress bars, warnings and log output disabled."""
    import datasets

    had_bars = not datasets.are_progress_bars_disabled()
    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    datasets.disable_progress_bars()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # pandas truncates or shifts a row with more cells than the header, and warns.
            warnings.filterwarnings("error", message="Length of header or names")
            yield datasets
    finally:
        if had_bars:
            datasets.enable_progress_bars()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
