"""Evaluate a reward model on pairs of answers."""

import logging
from dataclasses import dataclass

import numpy as np

from intel_ft.artifacts.resolve import Artifact
from intel_ft.config_sections import DataConfig
from intel_ft.data.prepare import prepare
from intel_ft.errors import IntelFTError
from intel_ft.runtimes.torch_reward import TorchReward, load_reward
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
    model = load_reward(artifact, trust_remote_code=trust_remote_code)
    prepared = prepare(settings, data, model.tokenizer, answers="pairs")
    for line in prepared.report.left_out():
        logger.info("%s", line)
    assert isinstance(prepared.examples, Pairs)
    return score_pairs(model, prepared.examples)


def score_pairs(model: TorchReward, pairs: Pairs) -> RewardResult:
    """Score every answer. Raises IntelFTError for a score that is not finite."""
    answers = pairs.answers
    scores = np.array([model.score(answers[index][0]) for index in range(len(answers))])
    if not np.isfinite(scores).all():
        place = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise IntelFTError(f"the score of pair {place // 2 + 1} is not finite: the model is broken")
    chosen, rejected = scores[::2], scores[1::2]
    margins = chosen - rejected
    return RewardResult(
        loss=float(np.logaddexp(0.0, -margins).mean()),
        pair_accuracy=float((margins > 0).mean()),
        pairs=len(pairs),
        reward_chosen=float(chosen.mean()),
        reward_rejected=float(rejected.mean()),
        reward_margin=float(margins.mean()),
    )
