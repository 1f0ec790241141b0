"""Tokenizes the blocks of a source, in order, by all cores of the host.

The tokenizer uses several cores by itself; what Python does for it takes about a sixth of the time
of one. So a few processes keep all cores of a large host busy. A rank that is bound to some cores
lets them use the others, too, because the other ranks wait for it.
"""

import multiprocessing
import os
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from intel_ft.config_sections import DataConfig
from intel_ft.data.prepare import prepare_rows
from intel_ft.gc_pause import gc_paused
from intel_ft.host import topology
from intel_ft.orphan import end_with_parent
from intel_ft.sources.bad_rows import NothingUsable
from intel_ft.sources.rows import Rows
from intel_ft.templates.examples import Examples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_CORES_EACH = 6
_MOST = 4  # processes; each takes about 0.4 GB
_FEW = 8  # blocks for which no process is started, which takes seconds


@dataclass(frozen=True)
class Block:
    """A block's examples, None if it has none, and what is to be known of it, as JSON values."""

    examples: Examples | None
    facts: dict[str, Any]


@dataclass(frozen=True)
class Task:
    """What is done with every block."""

    rows: Rows
    data: DataConfig
    tokenizer: "PreTrainedTokenizerFast"

    def block(self, start: int, end: int) -> Block:
        """Tokenize the rows from `start` to `end - 1`. Raises as data.prepare.prepare does."""
        rows = self.rows.part(start, end)
        try:
            with gc_paused():
                prepared = prepare_rows(rows, self.data, self.tokenizer, self.data.max_length)
        except NothingUsable as nothing:
            left_out = {
                "rows": len(rows),
                "bad": len(nothing.bad),
                "dropped": nothing.dropped,
                "bad_examples": nothing.bad.examples(),
            }
            return Block(None, {"left_out": left_out, "error": str(nothing), "highest": -1})
        examples = prepared.examples
        facts = {"report": asdict(prepared.report), "highest": examples.highest_id}
        return Block(examples, facts)


def blocks(task: Task, bounds: Sequence[tuple[int, int]]) -> Generator[Block, None, None]:
    """The blocks of rows between these bounds, in their order. Raises as Task.block does."""
    cores = topology.reachable_cpus()
    processes = min(max(1, len(cores) // _CORES_EACH), _MOST, len(bounds))
    alone = processes == 1 and cores == os.sched_getaffinity(0)
    if alone or len(bounds) <= _FEW:
        return (task.block(start, end) for start, end in bounds)
    return in_processes(task, bounds, processes, cores)


def in_processes(
    task: Task, bounds: Sequence[tuple[int, int]], processes: int, cores: set[int]
) -> Generator[Block, None, None]:
    """The blocks, tokenized by so many processes on these cores; few are in memory at a time."""
    threads = max(1, len(cores) // processes)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        processes, context, initializer=_begin, initargs=(task, threads, cores)
    ) as pool:
        under_way: deque[Future[Block]] = deque()
        try:
            for start, end in bounds:
                under_way.append(pool.submit(_block, start, end))
                if len(under_way) > processes + 1:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()


_task: Task | None = None


def _begin(task: Task, threads: int, cores: set[int]) -> None:
    global _task  # noqa: PLW0603 (a process of the pool has one task)
    end_with_parent()
    os.sched_setaffinity(0, cores)
    os.environ["RAYON_NUM_THREADS"] = str(threads)  # of the tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    _task = task


def _block(start: int, end: int) -> Block:
    assert _task is not None  # _begin has run
    return _task.block(start, end)
