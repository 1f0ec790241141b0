"""Shortening examples that are too long without losing their EOS; called from data.prepare."""

import numpy as np
import numpy.typing as npt

from intel_ft.data.examples import Examples


def cut(
    examples: Examples, max_length: int, eos_token_id: int
) -> tuple[Examples, npt.NDArray[np.int64]]:
    """Cut examples at `max_length` tokens, the last of them a supervised EOS.

    A cut inside an answer ends it with EOS; a cut in front of an answer goes back to the end of
    the answer before. Returns the examples, as many as before, and the indices of those that no
    token of an answer would be left of: these are unusable.
    """
    tokens, supervised = examples.tokens.copy(), examples.supervised.copy()
    stay = np.ones(len(tokens), np.bool_)
    lengths = examples.lengths.copy()
    lost = []
    for index in np.flatnonzero(lengths > max_length):
        start, end = examples.offsets[index], examples.offsets[index + 1]
        last = start + max_length - 1
        if not (supervised[last] and supervised[last - 1]):
            earlier = np.flatnonzero(supervised[start:last])
            if not len(earlier):
                lost.append(index)
                continue
            last = start + earlier[-1]
            if tokens[last] != eos_token_id:  # an end of turn of the template's own
                last += 1
        tokens[last] = eos_token_id
        supervised[last] = True
        stay[last + 1 : end] = False
        lengths[index] = last + 1 - start
    offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    return Examples(tokens[stay], supervised[stay], offsets), np.array(lost, np.int64)
