"""Measure how far a candidate of a reward model is from the model in torch, on pairs of answers."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from intel_ft.errors import UserError
from intel_ft.export.measure import SUMMARY
from intel_ft.export.run_data import SEED, ValidationSet
from intel_ft.export.tasks import TaskScore, compare_scores
from intel_ft.files import write_json
from intel_ft.inference.score_pairs import pair_scores, result_of
from intel_ft.runtimes.language_model import RewardModel
from intel_ft.templates.answers import Pairs

MOST_PAIRS = 1000
_SCORES = "scores.npy"


@dataclass(frozen=True)
class PairQuality:
    """Figures of one candidate against the reference, as docs/export.md defines them.

    agreement: share of the pairs that both models order alike; correlation: Pearson's, of all
    scores, None if one model gives all texts the same score; max_difference: of a score.
    """

    pair_accuracy: TaskScore
    agreement: float
    correlation: float | None
    max_difference: float
    tokens_per_s: float

    AGREEMENT: ClassVar[str] = "share of pairs in the same order"
    TASK: ClassVar[str] = "pair accuracy"
    MORE: ClassVar[str] = "more pairs"

    @property
    def task(self) -> TaskScore:
        """The figure that `Limits.max_task_drop` limits."""
        return self.pair_accuracy

    def summary(self) -> str:
        """The figures in one line, for the log."""
        accuracy = self.pair_accuracy
        like = "" if self.correlation is None else f"correlation {self.correlation:.5f}, "
        return (
            f"{self.TASK} {accuracy.score:.1%} ({accuracy.difference:+.1%}), {like}largest "
            f"difference of a score {self.max_difference:.4f}, {self.AGREEMENT} "
            f"{self.agreement:.4f}"
        )


@dataclass(frozen=True)
class PairTask:
    """What is measured of a reward model: its scores of the pairs of `validation`.

    These are all of them, or MOST_PAIRS drawn at random.
    """

    validation: ValidationSet

    def write_reference(self, model: RewardModel, folder: Path) -> None:
        """Write the reference's scores, float64 [pairs, 2], and its own measures."""
        scores = pair_scores(model, self.pairs())
        np.save(folder / _SCORES, scores)
        write_json(folder / SUMMARY, asdict(result_of(scores)))

    def measure(self, model: RewardModel, reference: Path) -> PairQuality:
        """Compare `model` with the reference that `write_reference` wrote to a folder."""
        pairs, expected = self.pairs(), np.load(reference / _SCORES)
        start = time.monotonic()
        scores = pair_scores(model, pairs)
        seconds = time.monotonic() - start
        margins, wanted = (values[:, 0] - values[:, 1] for values in (scores, expected))
        varied = scores.std() > 0 and expected.std() > 0
        return PairQuality(
            pair_accuracy=compare_scores(
                (margins > 0).astype(float).tolist(), (wanted > 0).astype(float).tolist()
            ),
            agreement=float((np.sign(margins) == np.sign(wanted)).mean()),
            correlation=float(np.corrcoef(scores.ravel(), expected.ravel())[0, 1])
            if varied
            else None,
            max_difference=float(np.abs(scores - expected).max()),
            tokens_per_s=len(pairs.tokens) / seconds,
        )

    def pairs(self) -> Pairs:
        """The pairs that are scored."""
        pairs = self.validation.prepared.examples
        if not isinstance(pairs, Pairs):
            raise UserError(
                f"{self.validation.source}: a reward model is measured on pairs of answers: give "
                "data with the columns chosen and rejected"
            )
        drawn = np.random.default_rng(SEED).permutation(len(pairs))[:MOST_PAIRS]
        return pairs.select(np.sort(drawn))

    def read_quality(self, values: dict[str, Any]) -> PairQuality:
        """The quality whose `asdict` is `values`."""
        return PairQuality(**(values | {"pair_accuracy": TaskScore(**values["pair_accuracy"])}))

    def data_record(self, summary: dict[str, Any]) -> dict[str, Any]:
        """The gate's `data` in export.json, taken out of the reference's `summary`."""
        return {"pairs": summary.pop("pairs")}
