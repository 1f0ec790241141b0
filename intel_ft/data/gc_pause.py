"""Python's cycle collector kept from looking at rows that form no cycles; called from data.prepare.

Each full collection looks at every object that is alive, and a hundred thousand small new ones set
off many: of 52,000 rows, half the time that is not the tokenizer's own.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """No collection of cycles inside; objects are freed by their reference counts as ever."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
