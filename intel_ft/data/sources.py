"""Reads rows from a file, a folder or the Hub, through `datasets`.

Local files are read into memory each time, through a temporary cache folder: changes are always
seen, processes do not share a cache, and no files are left behind. Only after `datasets` has failed
on a file is the cause determined (data.read_errors).
"""

import csv
import logging
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intel_ft.data.read_errors import problem_with
from intel_ft.errors import EnvironmentProblem, UserError, missing_package

if TYPE_CHECKING:
    from datasets import Dataset, Features

BUILDERS = {
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
}
_HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+))?")
_BATCH = 10_000  # rows converted to Python objects at a time


@dataclass(frozen=True)
class Rows:
    """A table of examples whose format is not yet determined.

    columns: names of all columns; nested: those that hold lists or mappings instead of text. A cell
    that a JSON row does not have is None.
    """

    source: str
    split: str
    columns: tuple[str, ...]
    nested: tuple[str, ...]
    files: tuple[Path, ...]  # empty when the rows come from the Hub
    table: "Dataset"

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
        if self.split != "train":
            return f"{self.source} row {number} of split {self.split}"
        if len(self.files) > 1:
            for file in self.files:
                count = len(_load_files((file,), "train"))
                if number <= count:
                    return f"{file} row {number}"
                number -= count
        return f"{self.files[0] if self.files else self.source} row {number}"


def load_rows(source: str, split: str = "train") -> Rows:
    """Read the rows of `source`, a local path or a Hub id.

    source: a .json, .jsonl, .csv, .parquet or .txt file, a folder of files of one of these types,
    or a Hub id (`org/name`, or `org/name:config`). A .json file is an array of objects, or one
    object per line; a .txt file gives one `text` row per paragraph, and paragraphs are separated by
    empty lines; .csv cells are always text. split: a split's name, or a slice of it such as
    `train[:1000]`; local files only have the split `train`.

    Raises UserError (one line: the file and what to do) if there is nothing to read or it cannot
    be read, EnvironmentProblem if the Hub cannot be reached or a package is missing.
    """
    path = Path(source).expanduser()
    if path.exists():
        files = _files(path)
        table = _local(source, files, split)
    elif path.suffix.lower() in BUILDERS or not _HUB_ID.fullmatch(source):
        raise UserError(f"{source}: no such file or folder, and not a Hub id such as org/name")
    else:
        files = ()
        table = _from_hub(source, split)
    if len(table) == 0:
        raise UserError(f"{source}: has no rows: add at least one example")
    nested = tuple(name for name, kind in table.features.items() if _is_nested(kind))
    return Rows(source, split, tuple(table.column_names), nested, files, table)


def _is_nested(kind: object) -> bool:
    return isinstance(kind, dict) or hasattr(kind, "feature")  # a mapping, or a list of features


def _files(path: Path) -> tuple[Path, ...]:
    """The file at `path`, or all data files in that folder, which must be of one type."""
    supported = ", ".join(BUILDERS)
    if path.is_file():
        if path.suffix.lower() not in BUILDERS:
            raise UserError(
                f"{path}: unknown file type {path.suffix or '(no extension)'}: supported are"
                f" {supported}"
            )
        return (path,)
    if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
        raise UserError(
            f"{path}: folders written by Dataset.save_to_disk are not supported: export the data"
            " with Dataset.to_parquet"
        )
    files = [
        file
        for file in sorted(path.iterdir())
        if file.is_file() and not file.name.startswith(".") and file.suffix.lower() in BUILDERS
    ]
    if not files:
        raise UserError(f"{path}: no data files in this folder: supported are {supported}")
    if len({file.suffix.lower() for file in files}) > 1:
        names = ", ".join(file.name for file in files[:8]) + (", ..." if len(files) > 8 else "")
        raise UserError(
            f"{path}: the folder has data files of several types ({names}): name one file, or keep"
            " only files of one type in a folder"
        )
    return tuple(files)


def _local(source: str, files: tuple[Path, ...], split: str) -> "Dataset":
    for file in files:
        if file.stat().st_size == 0:
            raise UserError(f"{file}: is empty: add at least one example")
    if not re.match(r"train\b", split):
        raise UserError(
            f"{source}: no split {split!r}: local files only have the split train (or a slice such"
            " as train[:100])"
        )
    try:
        return _load_files(files, split)
    except Exception as error:  # `datasets` passes on whatever its readers raise
        if missing := missing_package(error):
            raise missing from error
        for file in files:
            if problem := problem_with(file):
                raise UserError(f"{file}: {problem}") from error
        if "corresponds to no data" in str(error):
            raise UserError(f"{source}: has no rows: add at least one example") from error
        raise UserError(f"{source}: cannot be read as a table ({_cause(error)})") from error


def _load_files(files: tuple[Path, ...], split: str) -> "Dataset":
    builder = BUILDERS[files[0].suffix.lower()]
    options: dict[str, Any] = {}
    if builder == "text":
        options = {"sample_by": "paragraph", "encoding": "utf-8-sig"}
    if builder == "csv":
        options = {"keep_default_na": False, "index_col": False, "features": _text_columns(files)}
    with _quiet_datasets() as datasets, tempfile.TemporaryDirectory(prefix="intel-ft-") as cache:

        def load(**more: "Features") -> "Dataset":
            return datasets.load_dataset(
                builder,
                data_files=[str(file.resolve()) for file in files],
                split=split,
                cache_dir=cache,
                keep_in_memory=True,
                **{**options, **more},
            )

        table = load()
        if builder == "json" and "timestamp" in str(table.features):
            # Arrow converts text that looks like a date; Json() columns keep the text as it is.
            table = load(
                features=datasets.Features(
                    {
                        name: datasets.Json() if "timestamp" in str(kind) else kind
                        for name, kind in table.features.items()
                    }
                )
            )
        table.data.validate(full=True)  # Arrow's JSON reader accepts invalid UTF-8
        if builder == "text":
            table = _whole_paragraphs(table)
        return table


def _text_columns(files: tuple[Path, ...]) -> "Features | None":
    """Declares all columns as strings: otherwise answers such as 42 would become numbers."""
    import datasets

    with files[0].open(encoding="utf-8-sig", newline="") as file:
        header = next(csv.reader(file), [])
    if len(set(header)) < len(header):
        raise ValueError("duplicate column name")  # pandas would silently rename the second one
    return datasets.Features({name: datasets.Value("string") for name in header}) or None


def _whole_paragraphs(table: "Dataset") -> "Dataset":
    """Drops blank paragraphs and the newlines left by several consecutive empty lines."""
    import datasets

    texts = [text.strip("\n") for text in table["text"]]
    return datasets.Dataset.from_dict({"text": [text for text in texts if text.strip()]})


def _from_hub(source: str, split: str) -> "Dataset":
    match = _HUB_ID.fullmatch(source)
    assert match is not None  # load_rows has checked it
    with _quiet_datasets() as datasets:
        import httpx

        try:
            return datasets.load_dataset(match["name"], match["config"], split=split)
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


def _unreachable(source: str, error: Exception) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"{source}: no such local file, and the Hub cannot be reached ({_cause(error)}): check the"
        " network and HF_HUB_OFFLINE, or use a local file"
    )


def _cause(error: BaseException) -> str:
    """Type and text of the innermost exception, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


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
