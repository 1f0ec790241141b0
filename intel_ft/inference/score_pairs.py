"""Evaluate a reward model on pairs of answers."""

import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from intel_ft.artifacts.resolve import Artifact
from intel_ft.config_sections import DataConfig
from intel_ft.data.prepare import prepare
from intel_ft.errors import IntelFTError
from intel_ft.runtimes.language_model import RewardModel
from intel_ft.runtimes.open_model import open_reward
from intel_ft.templates.answers import Pairs

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RewardResult:
    """`loss` is the mean of -log sigmoid(chosen - rejected) over the `pairs`, in nats.

    `pair_accuracy` is the share of them whose chosen answer has the higher reward; `reward_chosen`
    and `reward_rejected` are the mean rewards, `reward_margin` their difference.
    """

    loss: float
    pair_accuracy: float
    pairs: int
    reward_chosen: float
    reward_rejected: float
    reward_margin: float


def score_data(
    artifact: Artifact, settings: DataConfig, data: str, *, trust_remote_code: bool = False
) -> RewardResult:
    """Load a reward model and score the pairs of `data`. Raises as `prepare` does."""
    model = open_reward(artifact, trust_remote_code=trust_remote_code)
    prepared = prepare(settings, data, model.tokenizer, answers="pairs")
    for line in prepared.report.left_out():
        logger.info("%s", line)
    assert isinstance(prepared.examples, Pairs)
    return result_of(pair_scores(model, prepared.examples))


def pair_scores(model: RewardModel, pairs: Pairs) -> npt.NDArray[np.float64]:
    """The score of every answer, [pairs, 2]: of the chosen one, then of the rejected one.

    Raises IntelFTError for a score that is not finite.
    """
    answers = pairs.answers
    scores = np.array([model.score(answers[index][0]) for index in range(len(answers))])
    if not np.isfinite(scores).all():
        place = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise IntelFTError(f"the score of pair {place // 2 + 1} is not finite: the model is broken")
    return scores.reshape(-1, 2)


def result_of(scores: npt.NDArray[np.float64]) -> RewardResult:
    """The measures of pairs, from their scores, float64 [pairs, 2]."""
    chosen, rejected = scores[:, 0], scores[:, 1]
    margins = chosen - rejected
    return RewardResult(
        loss=float(np.logaddexp(0.0, -margins).mean()),
        pair_accuracy=float((margins > 0).mean()),
        pairs=len(scores),
        reward_chosen=float(chosen.mean()),
        reward_rejected=float(rejected.mean()),
        reward_margin=float(margins.mean()),
    )
