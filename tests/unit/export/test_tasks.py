"""Scores on a user's task: which scorers there are, and how sure a difference is."""

import math

import numpy as np
import pytest

from intel_ft.errors import UserError
from intel_ft.export.gate import Limits
from intel_ft.export.measure import POSITIONS, Quality, _by_position, _Tokens
from intel_ft.export.tasks import (
    AnswerTask,
    TaskScore,
    compare_scores,
    load_scorer,
    similarity,
    task_code,
)


def scores(name, *answers):
    return AnswerTask(load_scorer(name)).scores(None, answers)


def test_scorers(tmp_path) -> None:
    file = tmp_path / "metrics.py"
    file.write_text("def longer(answer, reference):\n    return len(answer) > len(reference)\n")
    name = f"{file}:longer"
    assert scores(name, ("abc", "ab"), ("a", "ab")) == [1.0, 0.0]
    assert "def longer" in str(task_code(name)) and task_code("python") is None
    assert scores("exact_match", (" a\n", "a"), ("b", "a")) == [1.0, 0.0]
    assert scores("python", ("x = 1", ""), ("x =", "")) == [1.0, 0.0]
    assert scores("regex:^a+$", ("aa", ""), ("ab", "")) == [1.0, 0.0]


@pytest.mark.parametrize(
    "name, text, part",
    [
        ("unknown", "", "the tasks are exact_match, python"),
        ("regex:(", "", "not a regular expression"),
        ("{folder}/no.py:f", "", "no such file"),
        ("{folder}/m.py:g", "def f(): pass\n", "no function g"),
        ("{folder}/m.py:f", "import nothing_here\n", "cannot be run .ModuleNotFoundError"),
    ],
)
def test_scorers_that_are_none(tmp_path, name, text, part) -> None:
    (tmp_path / "m.py").write_text(text)
    with pytest.raises(UserError, match=part):
        load_scorer(name.format(folder=tmp_path))


def test_a_scorer_that_fails_is_named() -> None:
    with pytest.raises(UserError, match="ZeroDivisionError"):
        AnswerTask(lambda _a, _r: 1 / 0).scores(None, [("a", "b")])
    with pytest.raises(UserError, match="returned nan"):
        AnswerTask(lambda _a, _r: math.nan).scores(None, [("a", "b")])
    with pytest.raises(UserError, match="no conversations to answer"):
        AnswerTask(lambda _a, _r: 1.0).scores(None, [])


def test_paired_differences() -> None:
    reference = [1.0] * 60 + [0.0] * 40
    candidate = [1.0] * 50 + [0.0] * 10 + [1.0] * 4 + [0.0] * 36  # 10 lost, 4 won
    found = compare_scores(candidate, reference)
    assert (found.score, found.reference) == (0.54, 0.6)
    assert found.difference == pytest.approx(-0.06)
    assert found.p == pytest.approx(2 * (1 + 14 + 91 + 364 + 1001) / 2**14)
    differences = np.subtract(candidate, reference)
    normal = differences.mean() - 1.645 * differences.std() / 10
    assert found.worst == pytest.approx(normal, abs=0.015)
    assert compare_scores([0.5, 0.25], [0.5, 0.5]).p is None
    same = compare_scores(reference, reference)
    assert (same.difference, same.worst, same.p) == (0.0, -0.03, 1.0)  # not 0: 3 / n
    won = compare_scores([1.0] * 61 + [0.0] * 39, reference)
    assert (won.difference, won.worst) == (pytest.approx(0.01), -0.03)


def test_a_task_that_lost_too_much_is_rejected() -> None:
    def quality(task: TaskScore) -> Quality:
        return Quality(4.0, 0.0, 0.001, 0.0, 1.0, None, None, None, None, task=task)

    limits = Limits(max_task_drop=0.05)
    assert limits.is_set
    assert limits.why_rejected(quality(TaskScore(0.6, 0.6, 0.0, -0.03, 1.0))) is None
    unproven = limits.why_rejected(quality(TaskScore(0.58, 0.6, -0.02, -0.09, 0.7)))
    assert "58.0%" in str(unproven) and "more answers" in str(unproven)
    lost = limits.why_rejected(quality(TaskScore(0.4, 0.6, -0.2, -0.3, 0.01)))
    assert "more answers" not in str(lost) and "limit -5.0%" in str(lost)


def test_similarity_and_positions() -> None:
    assert similarity(["a b c", "x"], ["a b c", "x"]) == 1.0
    assert similarity(["a b c d"], ["a b"]) == pytest.approx(2 * 2 / 6)
    at = np.array([0, 5, 127, 128, 600])
    increases = np.array([0.0, 0.1, 0.2, 0.3, 0.4])
    parts = _by_position(_Tokens(np.ones(5), increases, increases, at > 0, at))
    assert [(part["from"], part["to"], part["positions"]) for part in parts] == [
        (0, 128, 3),
        (128, 129, 1),
        (512, 601, 1),
    ]
    assert parts[0]["ppl_increase"] == pytest.approx(math.exp(0.1) - 1)
    assert POSITIONS[0] == 0
