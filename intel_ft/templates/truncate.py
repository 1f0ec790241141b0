"""Truncates examples that are too long and keeps a supervised EOS at their end."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from intel_ft.templates.examples import Examples


def truncate(
    examples: Examples, max_length: int, eos_token_id: int
) -> tuple[Examples, npt.NDArray[np.int64]]:
    """Truncate examples to `max_length` tokens, the last of which is a supervised EOS.

    A cut inside an answer ends that answer with EOS; a cut in front of an answer moves back to the
    end of the previous answer. Returns the examples, the same number as before, and the indices of
    those that would keep no token of an answer: these are unusable.
    """
    tokens, supervised = examples.tokens.copy(), examples.supervised.copy()
    keep = np.ones(len(tokens), np.bool_)
    lengths = examples.lengths.copy()
    unusable = []
    for index in np.flatnonzero(lengths > max_length):
        start, end = examples.offsets[index], examples.offsets[index + 1]
        last = start + max_length - 1
        if not (supervised[last] and supervised[last - 1]):
            earlier = np.flatnonzero(supervised[start:last])
            if not len(earlier):
                unusable.append(index)
                continue
            last = start + earlier[-1]
            if tokens[last] != eos_token_id:  # the template's own end-of-turn token
                last += 1
        tokens[last] = eos_token_id
        supervised[last] = True
        keep[last + 1 : end] = False
        lengths[index] = last + 1 - start
    offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    kept = replace(examples, tokens=tokens[keep], supervised=supervised[keep], offsets=offsets)
    return kept, np.array(unusable, np.int64)
