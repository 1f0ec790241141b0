"""Scores of answers on a user's own task, and how sure a difference between two models is.

A scorer takes an answer and the reference and returns a number, 1 for right and 0 for wrong, or
anything between; lm-evaluation-harness has tasks of its own (export.harness). Both models answer
the same prompts, so differences are taken pair by pair.
"""

import difflib
import importlib.util
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from intel_ft.errors import UserError
from intel_ft.export.harness import PREFIX, load_harness
from intel_ft.inference.evaluate import is_exact_match, is_python
from intel_ft.runtimes.language_model import LanguageModel

Scorer = Callable[[str, str], float]

_RESAMPLES = 2000
_ONE_SIDED = 5  # per cent
_RULE_OF_THREE = 3.0  # with 95 % confidence an event that n trials did not show is rarer than 3 / n


class Task(Protocol):
    """What `--task` names."""

    def scores(self, model: LanguageModel, answers: Sequence[tuple[str, str]]) -> list[float]:
        """The score of each prompt.

        answers: the model's answers to the prompts of the validation set, with the references.
        Raises UserError where there is nothing to score, or no number comes out.
        """


@dataclass(frozen=True)
class AnswerTask:
    """The answers to the validation set, each scored by a function."""

    scorer: Scorer

    def scores(self, model: LanguageModel, answers: Sequence[tuple[str, str]]) -> list[float]:
        """See `Task.scores`."""
        if not answers:
            raise UserError("--task: the validation set has no conversations to answer")
        return [self._score(answer, reference) for answer, reference in answers]

    def _score(self, answer: str, reference: str) -> float:
        try:
            score = float(self.scorer(answer, reference))
        except Exception as error:
            raise UserError(
                f"--task: the scorer failed ({type(error).__name__}: {error})"
            ) from error
        if not math.isfinite(score):
            raise UserError(f"--task: the scorer returned {score}, not a finite number")
        return score


@dataclass(frozen=True)
class TaskScore:
    """Mean scores over the same prompts, and their paired difference (candidate - reference).

    worst: the difference is above this with 95 % confidence; p: of McNemar's exact test, None where
    the scores are not all 0 or 1.
    """

    score: float
    reference: float
    difference: float
    worst: float
    p: float | None


def load_task(name: str, documents: int | None = None) -> Task:
    """What `name` stands for: a task of lm-evaluation-harness, or a scorer of answers.

    documents: of the harness's task, None for its default. Raises UserError where there is no such
    task, EnvironmentProblem where the harness is needed and not installed.
    """
    if name.startswith(PREFIX):
        return load_harness(name, documents)
    return AnswerTask(load_scorer(name))


def load_scorer(name: str) -> Scorer:
    """The scorer `exact_match`, `python`, `regex:PATTERN` (searched for) or FILE.py:function.

    Raises UserError where there is no such scorer.
    """
    if name in _KNOWN:
        return _KNOWN[name]
    kind, colon, rest = name.partition(":")
    if kind == "regex" and colon:
        try:
            pattern = re.compile(rest)
        except re.error as error:
            raise UserError(f"--task {name}: not a regular expression ({error})") from None
        return lambda answer, _reference: float(pattern.search(answer) is not None)
    file, colon, function = name.rpartition(":")
    if not colon or not file.endswith(".py"):
        known = ", ".join([*_KNOWN, "regex:PATTERN", "FILE.py:function", "lm_eval:NAME"])
        raise UserError(f"--task {name}: the tasks are {known}")
    return _from_file(Path(file).expanduser(), function, name)


def task_code(name: str) -> str | None:
    """The text of the file that defines the task, None for one without a file."""
    file = name.split(":")[1] if name.startswith(PREFIX) else name.rpartition(":")[0]
    path = Path(file).expanduser()
    is_code = path.suffix in (".py", ".yaml", ".yml") and path.is_file()
    return path.read_text(encoding="utf-8") if is_code else None


def compare_scores(candidate: Sequence[float], reference: Sequence[float]) -> TaskScore:
    """How the candidate's scores differ from the reference's, prompt by prompt."""
    ours, theirs = np.asarray(candidate), np.asarray(reference)
    differences = ours - theirs
    count = len(differences)
    draws = np.random.default_rng(0).integers(count, size=(_RESAMPLES, count))
    worst = float(np.percentile(differences[draws].mean(axis=1), _ONE_SIDED))
    if not (differences < 0).any():  # resampling never draws a loss that it has not seen
        worst -= min(1.0, _RULE_OF_THREE / count)
    right = {0.0, 1.0}
    paired = set(ours.tolist()) <= right and set(theirs.tolist()) <= right
    return TaskScore(
        score=float(ours.mean()),
        reference=float(theirs.mean()),
        difference=float(differences.mean()),
        worst=worst,
        p=_mcnemar(int((differences > 0).sum()), int((differences < 0).sum())) if paired else None,
    )


def similarity(answers: Sequence[str], others: Sequence[str]) -> float:
    """Mean similarity, from 0 to 1, of answers to the same prompts (difflib's ratio of words)."""
    ratios = [
        difflib.SequenceMatcher(None, one.split(), other.split(), autojunk=False).ratio()
        for one, other in zip(answers, others, strict=True)
    ]
    return float(sum(ratios) / len(ratios))


def _mcnemar(better: int, worse: int) -> float:
    """Two-sided exact p-value: that so many of the prompts that differ fall on one side."""
    differing = better + worse
    tail = sum(math.comb(differing, k) for k in range(min(better, worse) + 1)) / 2**differing
    return float(min(1.0, 2 * tail))


def _from_file(path: Path, function: str, name: str) -> Scorer:
    if not path.is_file():
        raise UserError(f"--task {name}: no such file {path}")
    spec = importlib.util.spec_from_file_location(f"intel_ft_task_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # of a .py file
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(
            f"--task {name}: {path} cannot be run ({type(error).__name__}: {error})"
        ) from error
    found = getattr(module, function, None)
    if not callable(found):
        raise UserError(f"--task {name}: {path} has no function {function}(answer, reference)")
    scorer: Scorer = found
    return scorer


_KNOWN: dict[str, Scorer] = {
    "exact_match": lambda answer, reference: float(is_exact_match(answer, reference)),
    "python": lambda answer, _reference: float(is_python(answer)),
}
