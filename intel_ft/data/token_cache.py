"""Tokenized data on disk: made once by one process, and used again by every later one.

An entry of the cache is one source as one tokenizer and one config read it: its name is a hash of
all that the tokens follow from. The rows are tokenized block by block, each appended to the entry's
files (data.stored_examples), so a process that is killed loses one block.
"""

import hashlib
import json
import logging
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intel_ft.config_sections import DataConfig
from intel_ft.data.blocks import Task, blocks
from intel_ft.data.prepare import DataReport
from intel_ft.data.stored_examples import Writer, open_examples
from intel_ft.data.tokenized import Tokenized, first_bad_examples, merge_reports
from intel_ft.errors import EnvironmentProblem, UserError
from intel_ft.files import explain_full_disk, write_json
from intel_ft.host.launcher_env import LauncherEnv
from intel_ft.sources.cache_folder import (
    DONE,
    complete_entry,
    delete_oldest,
    entry_name,
    user_folder,
)
from intel_ft.sources.rows import LocalFiles, Rows, load_rows, local_files, read_local
from intel_ft.templates.control_tokens import ORDINARY

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LARGE = 2**25
"""Bytes of a source's files from which on data.cache=auto uses the cache for one process.

Several ranks of a host share what one of them has tokenized, whatever its size: reading rows takes
80 MiB and more in each (docs/log.md)."""
_BLOCK_BYTES, _BLOCK_ROWS = 2**25, 2**14  # rows that are tokenized at a time, at most
_PART = 2**20  # bytes at the start and end of a file that its fingerprint covers
_NOT_IN_TOKENS = {
    *("train", "eval", "eval_split", "eval_fraction"),
    *("cache", "cache_gib", "streaming", "buffer"),
}
_PACKAGES = ("datasets", "pyarrow", "tokenizers", "transformers")
_PROGRESS_SECONDS = 10

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Origin:
    """A source that was found: its files, or its rows if it comes from the Hub."""

    name: str
    files: LocalFiles | None
    rows: Rows | None

    @property
    def size(self) -> int:
        """Bytes of the files, or of the rows."""
        if self.files is not None:
            return sum(file.stat().st_size for file in self.files.files)
        assert self.rows is not None
        return int(self.rows.table.data.nbytes)

    def read(self, folder: Path) -> Rows:
        """The rows, converted into `folder` if they are not a table yet."""
        if self.files is not None:
            return read_local(self.files, folder)
        assert self.rows is not None
        return self.rows

    def facts(self) -> Iterator[str]:
        """What tells this content from any other."""
        if self.files is None:
            assert self.rows is not None
            yield str(self.rows.table._fingerprint)
            return
        for file in self.files.files:
            facts = file.stat()
            with file.open("rb") as stream:
                digest = hashlib.sha256(stream.read(_PART))
                stream.seek(max(facts.st_size - _PART, 0))
                digest.update(stream.read(_PART))
            yield f"{file.resolve()} {facts.st_size} {facts.st_mtime_ns} {digest.hexdigest()}"


def cached(
    data: DataConfig,
    source: str,
    tokenizer: "PreTrainedTokenizerFast",
    max_examples: int | None = None,
) -> Tokenized | None:
    """The examples of `source` through the cache; None if data.cache keeps them out of it.

    max_examples: only the first ones. Raises as data.prepare.prepare does.
    """
    found = _entry(data, source, tokenizer, max_examples)
    if found is None:
        return None
    entry, origin = found
    root = entry.parent
    try:
        with explain_full_disk(root, "run the command again: it continues where it stopped"):
            complete_entry(entry, lambda: _make(entry, data, origin, tokenizer, max_examples))
            delete_oldest(root, data.cache_gib * 2**30)
    except EnvironmentProblem as error:
        if data.cache != "auto" or origin.size >= LARGE:
            raise
        logger.info("each rank reads %s: %s", source, error)
        return None
    done = json.loads((entry / DONE).read_text(encoding="utf-8"))
    report = _report(done["report"])
    return Tokenized(open_examples(entry, done["highest"]), report.template, (report,))


def is_cached(
    data: DataConfig,
    source: str,
    tokenizer: "PreTrainedTokenizerFast",
    max_examples: int | None = None,
) -> bool:
    """Whether `cached` would find the examples of `source` complete. Raises as it does."""
    found = _entry(data, source, tokenizer, max_examples)
    return found is not None and (found[0] / DONE).exists()


def _entry(
    data: DataConfig,
    source: str,
    tokenizer: "PreTrainedTokenizerFast",
    max_examples: int | None,
) -> tuple[Path, _Origin] | None:
    """The entry for `source`, and what it is made from; None if data.cache keeps it out."""
    if data.cache == "off":
        return None
    files = local_files(source, data.split)
    rows = load_rows(source, data.split) if files is None else None
    origin = _Origin(source, files, rows)
    if data.cache == "auto" and origin.size < LARGE and LauncherEnv.detect().local_size == 1:
        return None
    root = user_folder() if data.cache == "auto" else Path(data.cache)
    return root.absolute() / _name(data, origin, tokenizer, max_examples), origin


def _name(
    data: DataConfig,
    origin: _Origin,
    tokenizer: "PreTrainedTokenizerFast",
    max_examples: int | None,
) -> str:
    """The entry's name, which follows from all that the tokens follow from."""
    return entry_name(
        "tokens",
        *(f"{name} {version(name)}" for name in _PACKAGES),
        _own_code(),
        tokenizer.backend_tokenizer.to_str(),
        str(tokenizer.chat_template),
        str(sorted(tokenizer.special_tokens_map.items(), key=str)),
        str(tokenizer.init_kwargs.get(ORDINARY)),
        data.model_dump_json(exclude=_NOT_IN_TOKENS),
        str(max_examples),
        *origin.facts(),
    )


@cache
def _own_code() -> str:
    """A hash of the code from rows to tokens: a change of templates or masks makes other tokens."""
    digest = hashlib.sha256()
    for package in ("sources", "templates", "conversations", "data"):
        for path in sorted((Path(__file__).parents[1] / package).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _make(
    entry: Path,
    data: DataConfig,
    origin: _Origin,
    tokenizer: "PreTrainedTokenizerFast",
    max_examples: int | None,
) -> None:
    writer = Writer(entry)
    try:
        rows = origin.read(entry / "rows")
        _write_blocks(writer, Task(rows, data, tokenizer), origin.name, max_examples)
        report = _whole_report(origin.name, writer.entries)
    except UserError:
        shutil.rmtree(entry, ignore_errors=True)  # other data will be another entry
        raise
    writer.close()
    shutil.rmtree(entry / "rows", ignore_errors=True)
    highest = max(one["highest"] for one in writer.entries)
    write_json(entry / DONE, {"report": asdict(report), "highest": highest})


def _write_blocks(writer: Writer, task: Task, name: str, max_examples: int | None) -> None:
    """Write the blocks that the writer does not have yet."""
    ends = _block_ends(task.rows)
    done = len(writer.entries)
    if done:
        logger.info("continuing to tokenize %s after row %s", name, f"{ends[done - 1]:,}")
    progress = _Progress(name, len(task.rows), ends[done - 1] if done else 0)
    bounds = list(pairwise([0, *ends]))[done:]
    with closing(blocks(task, bounds)) as made:
        for (_, end), block in zip(bounds, made, strict=False):
            writer.append(block.examples, block.facts)
            progress.show(end)
            if max_examples is not None and writer.examples >= max_examples:
                break


def _block_ends(rows: Rows) -> list[int]:
    """The rows after the last one of each block: the same whenever the source is read."""
    size = max(1, rows.table.data.nbytes // len(rows))
    block = min(max(1, _BLOCK_BYTES // size), _BLOCK_ROWS)
    return [*range(block, len(rows), block), len(rows)]


def _whole_report(source: str, entries: Sequence[dict[str, Any]]) -> DataReport:
    """The report of the whole source. Raises UserError where nothing of it can be used."""
    reports = [_report(entry["report"]) for entry in entries if "report" in entry]
    if not reports:
        raise UserError(f"{source}: nothing can be used; {entries[-1]['error']}")
    report = merge_reports(reports)
    left_out = [entry["left_out"] for entry in entries if "left_out" in entry]
    return replace(
        report,
        notes=_without_repeats(report.notes),
        rows=report.rows + sum(one["rows"] for one in left_out),
        bad=report.bad + sum(one["bad"] for one in left_out),
        dropped=report.dropped + sum(one["dropped"] for one in left_out),
        bad_examples=first_bad_examples([_bad_examples(entry) for entry in entries]),
    )


def _bad_examples(entry: dict[str, Any]) -> str:
    facts = entry.get("left_out") or entry["report"]
    return str(facts["bad_examples"])


def _without_repeats(notes: Sequence[str]) -> tuple[str, ...]:
    """The notes without those that say of another block what one has said before."""
    seen = {re.sub(r"'[^']*'|\"[^\"]*\"|[\d,]+", "", note): note for note in reversed(notes)}
    return tuple(note for note in notes if note in seen.values())


def _report(values: dict[str, Any]) -> DataReport:
    """The report that JSON made of one."""
    facts: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    return DataReport(**facts)


class _Progress:
    """Logs how far the tokenization is, every few seconds."""

    def __init__(self, source: str, rows: int, done: int) -> None:
        self._source, self._rows, self._first = source, rows, done
        self._began = self._shown = time.monotonic()

    def show(self, done: int) -> None:
        """Log that `done` rows are done, if it is time to."""
        now = time.monotonic()
        if now - self._shown < _PROGRESS_SECONDS and done < self._rows:
            return
        self._shown = now
        rate = (done - self._first) / max(now - self._began, 1e-6)
        logger.info(
            "tokenizing %s: %s of %s rows (%d %%), %s rows/s, %d s left",
            self._source,
            f"{done:,}",
            f"{self._rows:,}",
            100 * done // self._rows,
            f"{rate:,.0f}",
            (self._rows - done) / max(rate, 1e-6),
        )
