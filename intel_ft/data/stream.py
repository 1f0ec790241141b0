"""Examples of a source that is never stored: read while it is trained on, one buffer at a time.

A buffer is the next `data.buffer` rows; after the last row the source begins again. Each row gives
one example, so a buffer follows from its number, and a resumed run reads on from there. Every rank
reads the source.
"""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from intel_ft.config_sections import DataConfig
from intel_ft.data.prepare import Prepared, prepare_rows
from intel_ft.errors import EnvironmentProblem, UserError, missing_package
from intel_ft.gc_pause import gc_paused
from intel_ft.plurals import count_of
from intel_ft.sources.files import data_type
from intel_ft.sources.read_files import builder_of, cause_of, quiet_datasets
from intel_ft.sources.remote import is_url
from intel_ft.sources.rows import check_files, hub_arguments, local_files, rows_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Stream:
    """One buffer of a source's examples, an ExampleSet, which `move_to` replaces by another one.

    Raises UserError where the source cannot be streamed, or a row gives no example.
    """

    def __init__(self, data: DataConfig, source: str, tokenizer: "PreTrainedTokenizerFast") -> None:
        self._data, self._source, self._tokenizer = data, source, tokenizer
        self._rows, self._position = self._endless(), 0
        self.number = 0
        self.buffer = self._read()

    def move_to(self, number: int) -> None:
        """Hold buffer `number`, counted from 0."""
        if number == self.number:
            return
        start = number * self._data.buffer
        if start < self._position:
            self._rows, self._position = self._endless(), 0
        for _ in islice(self._rows, start - self._position):
            pass
        self._position = start
        self.buffer = self._read()
        self.number = number

    def _read(self) -> Prepared:
        import datasets

        first, size = self._position, self._data.buffer
        values = list(islice(self._rows, size))
        self._position += size
        try:
            table = datasets.Dataset.from_list(values)
        except Exception as error:  # pyarrow's own, such as for cells of two kinds in one column
            raise UserError(
                f"{self._source}, rows {first + 1:,} to {first + size:,}: cannot be read as a table"
                f" ({cause_of(error)})"
            ) from error
        note = (
            f"streamed, {count_of(size, 'row')} at a time: only the first ones have been read "
            "so far"
        )
        rows = rows_of(self._source, "train", table, notes=[note], first=first)
        with gc_paused():
            prepared = prepare_rows(rows, self._data, self._tokenizer, self._data.max_length)
        if prepared.report.separated:
            raise UserError(
                f"{rows.name}: the chat_template needs several examples for one row, which a stream"
                " does not support: set data.earlier_answers to context, or data.streaming to false"
            )
        if missing := size - len(prepared.examples):
            raise UserError(
                f"{rows.name}: {count_of(missing, 'row')} without an example, because no token "
                "of an answer"
                " would be left: increase data.max_length, or set data.streaming to false"
            )
        return prepared

    def _endless(self) -> Iterator[dict[str, Any]]:
        """The rows of the source, again and again."""
        while True:
            empty = True
            for row in _one_pass(self._source, self._data.split):
                empty = False
                yield row
            if empty:
                raise UserError(f"{self._source}: has no rows: add at least one example")

    def __len__(self) -> int:
        return len(self.buffer.examples)

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        return self.buffer.examples[index]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """See ExampleSet."""
        return self.buffer.examples.lengths

    @property
    def firsts(self) -> npt.NDArray[np.bool_]:
        """See ExampleSet."""
        return self.buffer.examples.firsts

    @property
    def supervised_counts(self) -> npt.NDArray[np.int64]:
        """See ExampleSet."""
        return self.buffer.examples.supervised_counts

    @property
    def weights(self) -> None:
        """See ExampleSet: a stream has none."""
        return None

    @property
    def hashes(self) -> npt.NDArray[np.uint64]:
        """See ExampleSet."""
        return self.buffer.examples.hashes

    @property
    def prompts(self) -> npt.NDArray[np.uint64]:
        """See ExampleSet."""
        return self.buffer.examples.prompts

    @property
    def highest_id(self) -> int:
        """The highest id that the tokenizer has: later buffers may have it."""
        return len(self._tokenizer) - 1

    def ids_beyond(self, limit: int) -> set[int]:
        """Ids of `limit` and more that the tokenizer has: later buffers may have them."""
        return set(range(limit, len(self._tokenizer)))


def _one_pass(source: str, split: str) -> Iterator[dict[str, Any]]:
    """The rows of a source, each as it is read. Raises UserError, EnvironmentProblem."""
    try:
        arguments = _arguments(source, split)
        with quiet_datasets() as datasets:
            rows = datasets.load_dataset(**arguments, streaming=True)
        if arguments["path"] == "text":
            rows = ({"text": row["text"].strip("\n")} for row in rows if row["text"].strip())
        yield from rows
    except (UserError, EnvironmentProblem):
        raise
    except Exception as error:  # each reader and filesystem raises its own
        if missing := missing_package(error):
            raise missing from error
        raise UserError(f"{source}: cannot be streamed ({cause_of(error)})") from error


def _arguments(source: str, split: str) -> dict[str, Any]:
    """The arguments of load_dataset for a URL, local files or a Hub id."""
    if not re.fullmatch(r"[\w.]+", split):
        raise UserError(f"{source}: data.split={split}: only a whole split can be streamed")
    if is_url(source):
        name, files = Path(source), [source]
        if data_type(name) is None or split != "train":
            raise UserError(
                f"{source}: to stream a URL, name files of one type, such as s3://bucket/*.jsonl,"
                " and leave data.split at train"
            )
    elif (chosen := local_files(source, split)) is None:
        return {**hub_arguments(source), "split": split}
    else:
        check_files(chosen.files)
        name = chosen.files[0]
        files = [str(file) for file in chosen.files]
    builder = builder_of(name)
    if builder == "csv":
        raise UserError(f"{source}: CSV cannot be streamed: write it as JSON lines or Parquet")
    options: dict[str, dict[str, Any]] = {
        "json": {"parse_agent_traces": False},
        "text": {"sample_by": "paragraph", "encoding": "utf-8-sig"},
    }
    own = options.get(builder, {})
    return {"path": builder, "data_files": {split: files}, "split": split, **own}
