"""Files of one type to a table of `datasets`, with text left as it is."""

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intel_ft.errors import UserError
from intel_ft.optional_packages import hidden
from intel_ft.sources.compressed import unpack
from intel_ft.sources.csv_header import read_header
from intel_ft.sources.files import BUILDERS, inner_type

if TYPE_CHECKING:
    from datasets import Dataset


def load_files(
    files: Mapping[str, tuple[Path, ...]], split: str, folder: Path | None = None
) -> "Dataset":
    """Rows of `split`, a name or expression of the names in `files`, which are of one type.

    folder: where the table lies; without it, it is in memory.
    """
    first = next(iter(files.values()))[0]
    builder = builder_of(first)
    with (
        quiet_datasets() as datasets,
        tempfile.TemporaryDirectory(prefix="intel-ft-", dir=folder and _made(folder)) as temporary,
    ):
        cache = temporary if folder is None else str(folder)
        unpacked = Path(temporary) / "unpacked"
        unpacked.mkdir()

        def load(**options: Any) -> "Dataset":
            return datasets.load_dataset(
                builder,
                data_files=paths,
                split=split,
                cache_dir=cache,
                keep_in_memory=folder is None,
                **options,
            )

        paths = {name: [str(unpack(f, unpacked)) for f in part] for name, part in files.items()}
        if builder == "csv":
            return load(**_csv_options([file for part in files.values() for file in part]))
        if builder == "text":
            table = load(sample_by="paragraph", encoding="utf-8-sig")
            return _whole_paragraphs(table, in_memory=folder is None)
        if builder != "json":
            return load()
        # Rows of certain columns would be taken for logs of coding agents and converted.
        table = keep_text(lambda **options: load(parse_agent_traces=False, **options))
        table.data.validate(full=True)  # Arrow's JSON reader accepts invalid UTF-8
        return table


def keep_text(load: Callable[..., "Dataset"]) -> "Dataset":
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


def builder_of(file: Path) -> str:
    """The module of `datasets` that reads this file."""
    return BUILDERS[inner_type(file)]


def _csv_options(files: Sequence[Path]) -> dict[str, Any]:
    """Reads all cells as strings: otherwise answers such as 42 would become numbers."""
    import datasets

    separator, header = read_header(files[0])
    for file in files[1:]:
        if (other := read_header(file)[0]) != separator:
            raise UserError(
                f"{file}: its cells are separated by {other!r}, those of {files[0].name} by"
                f" {separator!r}: use the same separator in all files"
            )
    if len(set(header)) < len(header):
        raise ValueError("duplicate column name")  # pandas would silently rename the second one
    features = datasets.Features({name: datasets.Value("string") for name in header}) or None
    return {"keep_default_na": False, "index_col": False, "sep": separator, "features": features}


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _whole_paragraphs(table: "Dataset", in_memory: bool) -> "Dataset":
    """Drops blank paragraphs and the newlines left by several consecutive empty lines."""
    return table.map(
        lambda batch: {"text": [text.strip("\n") for text in batch["text"] if text.strip()]},
        batched=True,
        keep_in_memory=in_memory,
        load_from_cache_file=False,
        new_fingerprint="whole-paragraphs",
    )


def cause_of(error: BaseException) -> str:
    """Type and text of the innermost exception, on one line."""
    error = innermost(error)
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def innermost(error: BaseException) -> BaseException:
    """The exception that caused the others."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@contextmanager
def quiet_datasets() -> Iterator[Any]:
    """Yield the `datasets` module with progress bars, warnings and log output disabled.

    SciPy is hidden: datasets 5.0 imports it to patch its reader of Matlab files, which takes 0.3 s.
    """
    import datasets

    had_bars = not datasets.are_progress_bars_disabled()
    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    datasets.disable_progress_bars()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), hidden("scipy"):
            warnings.simplefilter("ignore")
            # pandas truncates or shifts a row with more cells than the header, and warns.
            warnings.filterwarnings("error", message="Length of header or names")
            yield datasets
    finally:
        if had_bars:
            datasets.enable_progress_bars()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
