"""A run holds the lock of its folder, and ends if another process has taken over."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from intel_ft.distributed.folder_lock import FolderLock
from intel_ft.distributed.world import World


class LockCheck(TrainerCallback):  # type: ignore[misc]
    """Ends the run after a step if another process has taken over its folder."""

    def __init__(self, lock: FolderLock) -> None:
        self.lock = lock

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Called before the step is logged or saved."""
        self.lock.require_held()


@contextmanager
def locked(run: Path, world: World) -> Iterator[FolderLock | None]:
    """Rank 0 holds the lock of `run` inside the block; the other ranks get None."""
    lock = None
    with world.raise_on_all_ranks():
        if world.rank == 0:
            lock = FolderLock.take(run)
            lock.keep()
    try:
        yield lock
    finally:
        if lock is not None:
            lock.release()
