"""Measure how far a candidate is from the model in torch, on the validation set.

The reference's log-probabilities are computed once and compared with every candidate: float32, at
the supervised positions of as many examples as fit into REFERENCE_BYTES.
"""

import math
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from intel_ft.artifacts.resolve import read_json
from intel_ft.errors import IntelFTError, UserError
from intel_ft.export.run_data import SEED, ValidationSet
from intel_ft.export.tasks import Task, TaskScore, compare_scores, similarity
from intel_ft.files import write_json
from intel_ft.inference.evaluate import answers_and_references, compare_answers
from intel_ft.runtimes.language_model import LanguageModel, Sampling
from intel_ft.templates.examples import Examples

REFERENCE_BYTES = 2**31
LOG_PROBABILITIES, SUMMARY = "log_probabilities.npy", "reference.json"
ANSWERS = "answers.json"
SPEED_PROMPTS, SPEED_TOKENS = 3, 32
POSITIONS = (0, 128, 512, 2048, 8192, 32768, 2**31)
"""Bounds of the positions that `Quality.by_position` distinguishes."""


@dataclass(frozen=True)
class Quality:
    """Figures of one candidate against the reference, as docs/export.md defines them.

    by_position: the increase of perplexity where a token stands in its sequence.
    """

    perplexity: float
    ppl_increase: float
    ppl_increase_error: float
    kl: float
    agreement: float
    exact_match: float | None
    parses: float | None
    first_token_ms: float | None
    tokens_per_s: float | None
    similarity: float | None = None
    task: TaskScore | None = None
    by_position: list[dict[str, Any]] = field(default_factory=list)

    AGREEMENT: ClassVar[str] = "top-1 agreement"
    TASK: ClassVar[str] = "task"
    MORE: ClassVar[str] = "more answers (--generate)"

    def summary(self) -> str:
        """The figures in one line, for the log."""
        return (
            f"perplexity {self.perplexity:.4f} ({self.ppl_increase:+.2%} ± "
            f"{self.ppl_increase_error:.2%}), KL {self.kl:.5f}, {self.AGREEMENT} "
            f"{self.agreement:.4f}"
        )


def select_examples(
    examples: Examples, vocabulary: int, max_bytes: int = REFERENCE_BYTES
) -> list[int]:
    """Indices of the examples that are measured: all, or a random subset that fits `max_bytes`.

    Raises UserError where nothing is supervised.
    """
    counts = examples.supervised_counts
    order = np.random.default_rng(SEED).permutation(len(examples))
    fits = np.cumsum(counts[order]) * vocabulary * 4 <= max_bytes
    selected = sorted(int(index) for index in order[fits] if counts[index])
    if not selected:
        raise UserError("nothing to measure: no supervised token in the validation set")
    return selected


@dataclass(frozen=True)
class GateTask:
    """What is measured: the positions of `validation`, and `generate` greedy answers.

    task: scores these answers, or has prompts of its own; None where the user gave none.
    """

    validation: ValidationSet
    system_prompt: str | None
    generate: int
    max_new_tokens: int
    task: Task | None = None

    def write_reference(self, model: LanguageModel, folder: Path) -> None:
        """Write the reference's log-probabilities, float32 [positions, vocabulary], and facts."""
        examples = self.validation.prepared.examples
        vocabulary = model.logits(examples.tokens[:1], np.zeros(1, dtype=np.int64)).shape[1]
        selected = select_examples(examples, vocabulary)
        positions = int(examples.supervised_counts[selected].sum())
        table = np.lib.format.open_memmap(
            folder / LOG_PROBABILITIES, mode="w+", dtype=np.float32, shape=(positions, vocabulary)
        )
        losses = []
        start = 0
        for logits, targets, _ in _target_logits(model, examples, selected):
            rows = _log_softmax(logits)
            table[start : start + len(rows)] = rows
            start += len(rows)
            losses.append(_losses(rows, targets))
        table.flush()
        loss = float(np.concatenate(losses).mean())
        if not math.isfinite(loss):
            raise IntelFTError(
                "the model's own loss on the validation set is not finite: the model is broken"
            )
        pairs, scores = self._answers_and_scores(model)
        summary = {"examples": selected, "positions": positions, "perplexity": math.exp(loss)}
        summary |= asdict(compare_answers(pairs))
        summary["task"] = float(np.mean(scores)) if scores else None
        write_json(folder / SUMMARY, summary)
        write_json(folder / ANSWERS, {"answers": [answer for answer, _ in pairs], "scores": scores})

    def measure(self, model: LanguageModel, reference: Path) -> Quality:
        """Compare `model` with the reference that `write_reference` wrote to a folder."""
        examples, selected = self.validation.prepared.examples, read_summary(reference)["examples"]
        table = np.load(reference / LOG_PROBABILITIES, mmap_mode="r")
        tokens = _compare_tokens(model, examples, selected, table)
        pairs, scores = self._answers_and_scores(model)
        answers, theirs = compare_answers(pairs), read_json(reference / ANSWERS)
        first_token_ms, tokens_per_s = _speed(model, examples, selected)
        return Quality(
            **_perplexity(tokens.losses, tokens.increases),
            kl=float(tokens.kl.mean()),
            agreement=float(tokens.same.mean()),
            exact_match=answers.exact_match,
            parses=answers.parses,
            first_token_ms=first_token_ms,
            tokens_per_s=tokens_per_s,
            similarity=similarity([answer for answer, _ in pairs], theirs["answers"])
            if pairs
            else None,
            task=compare_scores(scores, theirs["scores"]) if scores else None,
            by_position=_by_position(tokens),
        )

    def _answers_and_scores(
        self, model: LanguageModel
    ) -> tuple[list[tuple[str, str]], list[float]]:
        """The model's answers, each with the reference, and the scores of the task, if any."""
        prepared, prompt = self.validation.prepared, self.system_prompt
        pairs = answers_and_references(model, prepared, prompt, self.generate, self.max_new_tokens)
        return pairs, [] if self.task is None else self.task.scores(model, pairs)

    def read_quality(self, values: dict[str, Any]) -> Quality:
        """The quality whose `asdict` is `values`."""
        task = values.get("task")
        return Quality(**(values | {"task": task and TaskScore(**task)}))

    def data_record(self, summary: dict[str, Any]) -> dict[str, Any]:
        """The gate's `data` in export.json, taken out of the reference's `summary`."""
        return {
            "examples": len(summary.pop("examples")),
            "positions": summary.pop("positions"),
            "generated": summary.pop("generated"),
            "max_new_tokens": self.max_new_tokens,
        }


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary that `write_reference` wrote: examples, positions, perplexity, answers."""
    return read_json(folder / SUMMARY)


@dataclass(frozen=True)
class _Tokens:
    """What a candidate does at each measured position, all [positions].

    losses: its own, in nats; increases: over the reference's; same: its most likely token is the
    reference's; at: where the position is in its sequence.
    """

    losses: npt.NDArray[np.float64]
    increases: npt.NDArray[np.float64]
    kl: npt.NDArray[np.float64]
    same: npt.NDArray[np.bool_]
    at: npt.NDArray[np.int64]


def _compare_tokens(
    model: LanguageModel, examples: Examples, selected: list[int], table: npt.NDArray[np.float32]
) -> _Tokens:
    """Compare a model's log-probabilities with the reference's, in `table`."""
    parts = []
    start = 0
    for logits, targets, at in _target_logits(model, examples, selected):
        candidate = _log_softmax(logits[:, : table.shape[1]])
        expected = np.asarray(table[start : start + len(candidate)])
        start += len(candidate)
        losses = _losses(candidate, targets)
        kl = np.sum(np.exp(expected) * (expected - candidate), axis=1, dtype=np.float64)
        same = candidate.argmax(axis=1) == expected.argmax(axis=1)
        parts.append((losses, losses - _losses(expected, targets), kl, same, at))
    return _Tokens(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _perplexity(
    losses: npt.NDArray[np.float64], increases: npt.NDArray[np.float64]
) -> dict[str, float]:
    """A candidate's perplexity, its increase over the reference's, and the standard error."""
    ratio = math.exp(min(float(increases.mean()), 700.0))
    return {
        "perplexity": math.exp(min(float(losses.mean()), 700.0)),
        "ppl_increase": ratio - 1,
        "ppl_increase_error": ratio * float(increases.std()) / math.sqrt(len(increases)),
    }


def _by_position(tokens: _Tokens) -> list[dict[str, Any]]:
    """Perplexity and its increase for the tokens between each two of POSITIONS."""
    parts = []
    for start, end in pairwise(POSITIONS):
        chosen = (tokens.at >= start) & (tokens.at < end)
        if chosen.any():
            last = int(tokens.at[chosen].max())
            span = {"from": start, "to": last + 1, "positions": int(chosen.sum())}
            parts.append(span | _perplexity(tokens.losses[chosen], tokens.increases[chosen]))
    return parts


def _target_logits(
    model: LanguageModel, examples: Examples, indices: list[int]
) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.int32], npt.NDArray[np.int64]]]:
    """Per example, the logits [positions, vocabulary] that predict its targets [positions].

    Third, where these targets stand.
    """
    for index in indices:
        tokens, supervised = examples[index]
        targets = np.flatnonzero(supervised)
        yield model.logits(tokens, targets - 1), tokens[targets], targets


def _log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    total = np.log(np.exp(shifted).sum(axis=1, dtype=np.float64, keepdims=True))
    return np.asarray(shifted - total, dtype=np.float32)


def _losses(
    log_probabilities: npt.NDArray[np.float32], targets: npt.NDArray[np.int32]
) -> npt.NDArray[np.float64]:
    picked = np.take_along_axis(log_probabilities, targets[:, None].astype(np.int64), axis=1)
    return -picked[:, 0].astype(np.float64)


def _speed(
    model: LanguageModel, examples: Examples, indices: list[int]
) -> tuple[float | None, float | None]:
    """Milliseconds to the first token, and tokens/s after it: medians over a few prompts."""
    firsts, rates = [], []
    model.generate(
        [int(token) for token in examples[indices[0]][0][:1]], Sampling(max_new_tokens=2)
    )
    for index in indices[:SPEED_PROMPTS]:
        tokens, supervised = examples[index]
        prompt = [int(token) for token in tokens[: int(np.argmax(supervised))]]
        if not prompt:
            continue
        first = model.generate(prompt, Sampling(max_new_tokens=1)).seconds
        whole = model.generate(prompt, Sampling(max_new_tokens=SPEED_TOKENS))
        firsts.append(first * 1000)
        if len(whole.new_tokens) > 1 and whole.seconds > first:
            rates.append((len(whole.new_tokens) - 1) / (whole.seconds - first))
    return (
        statistics.median(firsts) if firsts else None,
        statistics.median(rates) if rates else None,
    )
