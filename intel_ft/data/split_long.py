"""Splits documents that are too long into several examples, which together have every token."""

import numpy as np
import numpy.typing as npt

from intel_ft.templates.examples import Examples


def split_long(
    examples: Examples, max_length: int, overlap: int
) -> tuple[Examples, npt.NDArray[np.int64]]:
    """Examples of at most `max_length` tokens, and the index of the one that each is from.

    Each but the first of a document begins with the last `overlap` tokens of the one before, which
    are context there and not supervised. With at least one, every token that was supervised still
    is, exactly once, because it has the token before it in its example.
    """
    step = max_length - overlap
    lengths = examples.lengths
    counts = np.where(lengths <= max_length, 1, -(-(lengths - overlap) // step))
    origin = np.repeat(np.arange(len(examples)), counts)
    place = np.arange(len(origin)) - np.repeat(np.cumsum(counts) - counts, counts)
    sizes = np.minimum(lengths[origin] - place * step, max_length)
    offsets = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], sizes)
    taken = np.repeat(examples.offsets[origin] + place * step, sizes) + within
    repeated = np.repeat(place > 0, sizes) & (within < overlap)
    supervised = examples.supervised[taken] & ~repeated
    begins = examples.firsts[origin] & (place == 0)
    weights = None if examples.weights is None else examples.weights[origin]
    return Examples(examples.tokens[taken], supervised, offsets, begins, weights), origin
