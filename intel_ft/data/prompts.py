"""Which examples answer the same prompt.

Called from data.validation_split, and from what plans the order of an epoch.
"""

import numpy as np
import numpy.typing as npt

from intel_ft.templates.examples import ExampleSet

IntArray = npt.NDArray[np.int64]

MOST_ANSWERS = 64
"""A prompt that more examples have than this is an instruction, not a question with answers."""


def answers_together(examples: ExampleSet) -> IntArray | None:
    """Of each example the first one that it belongs to, int64 [examples]; None if all are alone.

    Examples with the same prompt belong together, unless more than MOST_ANSWERS, or all, have it.
    So do those of one row (conversations with an example for each answer) that begin alike.
    """
    found = np.arange(len(examples))
    prompts, firsts = examples.prompts, examples.firsts
    continues = np.zeros(len(found), np.bool_)
    row_of = np.flatnonzero(firsts)[np.cumsum(firsts) - 1]
    for place in np.flatnonzero(~firsts & (prompts != 0)).tolist():
        continues[place] = _begins_with(examples, place, int(row_of[place]))
    asked = np.flatnonzero((prompts != 0) & ~continues)
    _, first, group = np.unique(prompts[asked], return_index=True, return_inverse=True)
    found[asked] = asked[first[group]]
    found[continues] = found[row_of[continues]]
    counts = np.bincount(found, minlength=len(found))[found]
    alone = counts > min(MOST_ANSWERS, len(found) - 1)
    found[alone] = np.flatnonzero(alone)
    return None if (counts[~alone] == 1).all() else found


def _begins_with(examples: ExampleSet, place: int, other: int) -> bool:
    """Whether the prompt of one example begins with that of another one, which has one."""
    beginning = _prompt(examples, other)
    if len(beginning) < 2:
        return False
    return np.array_equal(_prompt(examples, place)[: len(beginning)], beginning)


def _prompt(examples: ExampleSet, place: int) -> npt.NDArray[np.int32]:
    tokens, supervised = examples[place]
    return tokens[: int(supervised.argmax())]
