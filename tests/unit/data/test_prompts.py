"""Which examples answer one prompt, and so stay together when an epoch is shuffled."""

import numpy as np

from intel_ft.data.prompts import answers_together
from intel_ft.data.selection import Selection
from intel_ft.templates.answers import pairs_of
from intel_ft.templates.examples import Examples


def examples(*rows: tuple[list[int], list[int]], begins: list[bool] | None = None) -> Examples:
    """Examples of prompts and answers."""
    tokens = [np.array(prompt + answer, np.int32) for prompt, answer in rows]
    masks = [np.array([False] * len(p) + [True] * len(a)) for p, a in rows]
    for mask in masks:
        mask[0] = False
    offsets = np.cumsum([0, *map(len, tokens)], dtype=np.int64)
    firsts = None if begins is None else np.array(begins)
    return Examples(np.concatenate(tokens), np.concatenate(masks), offsets, firsts)


def test_equal_prompts_belong_together() -> None:
    found = answers_together(
        examples(([1, 2], [5]), ([1, 3], [5]), ([1, 2], [6]), ([1, 2, 2], [6]), ([1, 3], [7]))
    )
    assert found is not None and found.tolist() == [0, 1, 0, 3, 1]


def test_where_nothing_repeats_the_order_stays_random() -> None:
    assert answers_together(examples(([1, 2], [5]), ([1, 3], [5]))) is None
    # Plain text: each example begins with BOS, which is no prompt.
    assert answers_together(examples(([1], [5]), ([1], [6]), ([1], [7]))) is None


def test_an_instruction_of_most_rows_is_no_prompt() -> None:
    assert answers_together(examples(*(([1, 2], [5 + n]) for n in range(9)))) is None
    rows = [([1, 2], [5 + n]) for n in range(65)] + [([1, 3], [5]), ([1, 3], [6])]
    found = answers_together(examples(*rows))
    assert found is not None and found.tolist() == [*range(66), 65]


def test_answers_of_one_conversation_belong_together() -> None:
    """Each continues the one before, so its prompt differs; parts of a text have none."""
    begins = [True, False, True, False]
    rows = (([1, 2], [5]), ([1, 2, 5, 3], [6]), ([1, 9], [5]), ([1, 8, 5], [6]))
    found = answers_together(examples(*rows, begins=begins))
    assert found is not None and found.tolist() == [0, 0, 2, 3]
    text = (([1], [5]), ([1], [6]), ([1], [7]), ([1], [8]))
    assert answers_together(examples(*text, begins=begins)) is None


def test_pairs_and_selections_are_seen_as_well() -> None:
    answers = examples(([1, 2], [5]), ([1, 2], [6]), ([1, 2], [7]), ([1, 2], [8]), ([1], [2]))
    pairs = pairs_of(answers.select(np.arange(4)))
    third = pairs_of(examples(([1, 4], [5]), ([1, 4], [6])))
    found = answers_together(Selection((pairs, third), np.array([2, 0, 1])))
    assert found is not None and found.tolist() == [0, 1, 1]
