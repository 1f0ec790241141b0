"""Tokenized examples in files, which are mapped into memory, and the writer that appends to them.

Processes of a host share the pages that they read. What a plan needs of every example is read into
memory: 33 bytes each, 315 MiB for 10 million examples.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from intel_ft.templates.examples import Examples

_ARRAYS: dict[str, Any] = {
    "tokens": np.int32,
    "supervised": np.bool_,
    "lengths": np.int32,
    "counts": np.int32,
    "hashes": np.uint64,
    "prompts": np.uint64,
    "firsts": np.bool_,
    "weights": np.float32,
}
"""The files, each one array: of tokens, the first two; of examples, the others."""
_JOURNAL = "journal.jsonl"


@dataclass(frozen=True, kw_only=True)
class StoredExamples(Examples):
    """Examples whose tokens and masks lie in files. counts: supervised tokens of each example."""

    counts: npt.NDArray[np.int64]
    stored_hashes: npt.NDArray[np.uint64]
    stored_prompts: npt.NDArray[np.uint64]
    highest: int

    @property
    def supervised_counts(self) -> npt.NDArray[np.int64]:
        """See Examples."""
        return self.counts

    @property
    def hashes(self) -> npt.NDArray[np.uint64]:
        """See Examples."""
        return self.stored_hashes

    @property
    def prompts(self) -> npt.NDArray[np.uint64]:
        """See Examples."""
        return self.stored_prompts

    @property
    def highest_id(self) -> int:
        """See Examples."""
        return self.highest

    def ids_beyond(self, limit: int) -> set[int]:
        """See Examples."""
        return super().ids_beyond(limit) if self.highest >= limit else set()


def open_examples(folder: Path, highest: int) -> StoredExamples:
    """The examples that a writer wrote to `folder`; `highest` is their highest token id."""

    def mapped(name: str) -> npt.NDArray[Any]:
        return np.asarray(np.memmap(folder / name, _ARRAYS[name], "r"))

    lengths = np.fromfile(folder / "lengths", _ARRAYS["lengths"])
    weights = np.fromfile(folder / "weights", _ARRAYS["weights"])
    return StoredExamples(
        tokens=mapped("tokens"),
        supervised=mapped("supervised"),
        offsets=np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))),
        counts=np.fromfile(folder / "counts", _ARRAYS["counts"]).astype(np.int64),
        stored_hashes=mapped("hashes"),
        stored_prompts=mapped("prompts"),
        highest=highest,
        begins=np.fromfile(folder / "firsts", _ARRAYS["firsts"]),
        weights=None if (weights == 1).all() else weights,
    )


class Writer:
    """Appends examples to the files in a folder, and continues what a killed process wrote there.

    Each part has an entry in a journal, written after the part's data. What has no entry is cut
    off when the folder is opened again. Not for two processes at once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: list[dict[str, Any]] = []
        sizes = dict.fromkeys(_ARRAYS, 0)
        for entry in _journal(folder / _JOURNAL):
            if any(_size(folder / name) < size for name, size in entry["sizes"].items()):
                break  # the machine went down before the data was on the disk
            self.entries.append(entry)
            sizes = entry["sizes"]
        self._files: dict[str, IO[bytes]] = {}
        for name, size in sizes.items():
            file = (folder / name).open("ab")
            file.truncate(size)
            self._files[name] = file
        lines = "".join(f"{json.dumps(entry)}\n" for entry in self.entries)
        (folder / _JOURNAL).write_text(lines, encoding="utf-8")

    @property
    def examples(self) -> int:
        """Examples that were written."""
        return _size(self.folder / "lengths") // 4

    def append(self, examples: Examples | None, entry: dict[str, Any]) -> None:
        """Append the examples, and an entry of any facts about them to the journal."""
        if examples is not None:
            ones = np.ones(len(examples), np.float32)
            arrays: tuple[npt.NDArray[Any], ...] = (
                *(examples.tokens, examples.supervised, examples.lengths),
                *(examples.supervised_counts, examples.hashes, examples.prompts),
                examples.firsts,
                ones if examples.weights is None else examples.weights,
            )
            for array, (name, kind) in zip(arrays, _ARRAYS.items(), strict=True):
                self._files[name].write(array.astype(kind, copy=False).data)
        for file in self._files.values():
            file.flush()
        sizes = {name: _size(self.folder / name) for name in _ARRAYS}
        self.entries.append({**entry, "sizes": sizes})
        with (self.folder / _JOURNAL).open("a", encoding="utf-8") as journal:
            journal.write(f"{json.dumps(self.entries[-1])}\n")

    def close(self) -> None:
        """Flush all files to the disk."""
        for file in self._files.values():
            os.fsync(file.fileno())
            file.close()


def _journal(path: Path) -> list[dict[str, Any]]:
    """The entries that were written whole."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
