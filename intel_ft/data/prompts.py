"""Which examples answer the same prompt. Called from data.validation_split and training.decide.

The prompt of an example is what comes before its first supervised token. A single token is none:
plain text begins with one.
"""

import hashlib

import numpy as np
import numpy.typing as npt

from intel_ft.templates.examples import ExampleSet

IntArray = npt.NDArray[np.int64]

MOST_ANSWERS = 64
"""A prompt that more examples have than this is an instruction, not a question with answers."""


def first_with_prompt(examples: ExampleSet, places: IntArray) -> IntArray:
    """Of each place the index in `places` of the first one with its prompt, int64 [places]."""
    found = np.arange(len(places))
    seen: dict[bytes, int] = {}
    for index, place in enumerate(places.tolist()):
        if (prompt := _prompt(examples, place)) is not None:
            found[index] = seen.setdefault(_digest(prompt), index)
    return found


def answers_together(examples: ExampleSet) -> IntArray | None:
    """Of each example the first one that it belongs to, int64 [examples]; None if all are alone.

    Examples with the same prompt belong together, unless more than MOST_ANSWERS, or all, have it.
    So do those of one row (conversations with an example for each answer) that begin alike.
    """
    found = np.arange(len(examples))
    seen: dict[bytes, int] = {}
    row_start, row_prompt = 0, None
    for place, first in enumerate(examples.firsts.tolist()):
        prompt = _prompt(examples, place)
        if first:
            row_start, row_prompt = place, prompt
        elif _begins_with(prompt, row_prompt):
            found[place] = found[row_start]
            continue
        if prompt is not None:
            found[place] = seen.setdefault(_digest(prompt), place)
    counts = np.bincount(found, minlength=len(found))[found]
    alone = counts > min(MOST_ANSWERS, len(found) - 1)
    found[alone] = np.flatnonzero(alone)
    return None if (counts[~alone] == 1).all() else found


def _prompt(examples: ExampleSet, place: int) -> npt.NDArray[np.int32] | None:
    tokens, supervised = examples[place]
    end = int(supervised.argmax())
    return tokens[:end] if end > 1 else None


def _begins_with(prompt: npt.NDArray[np.int32] | None, other: npt.NDArray[np.int32] | None) -> bool:
    if prompt is None or other is None:
        return False
    return np.array_equal(prompt[: len(other)], other)


def _digest(prompt: npt.NDArray[np.int32]) -> bytes:
    return hashlib.blake2b(prompt.tobytes(), digest_size=16).digest()
