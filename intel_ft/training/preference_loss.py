"""The losses of preference methods, from the log-probabilities of answers.

log p is the log-probability of an answer's tokens, its end included, n their number, and ref that
of the reference model, which is the model before training.

    r = log p - ref         dpo, kto
    r = (log p - ref) / n   ipo
    r = log p / n           simpo, orpo
    r = log p               cpo
    h = r(chosen) - r(rejected)

    dpo    -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h)    Rafailov et al. 2023;
                                                        e (label smoothing): Mitchell 2023
    ipo    (h - 1 / (2 beta))^2                         Azar et al. 2023, equation 17, per token as
                                                        in its experiments (the note in TRL)
    simpo  as dpo, of beta h - gamma                    Meng et al. 2024
    cpo    as dpo                                       Xu et al. 2024
    orpo   -log p(chosen) / n - beta log sigmoid(log odds ratio)
           log odds = r - log(1 - exp r)                Hong et al. 2024
    kto    good: weight (1 - sigmoid(beta (r - z)))     Ethayarajh et al. 2024
           bad:  weight (1 - sigmoid(beta (z - r)))
           z: mean of r over the step's prompts with answers to other prompts, at least 0

    reward -log sigmoid(r(chosen) - r(rejected))        Bradley and Terry 1952; r is the score of a
                                                        reward model, with beta 1

sft_weight adds -log p(chosen) / n (RPO: Pang et al. 2024; cpo has it with weight 1).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from intel_ft.config_method import MethodConfig

WITH_REFERENCE = ("dpo", "ipo", "kto")
_PER_TOKEN = ("ipo", "simpo", "orpo")


class Answers(NamedTuple):
    """Some answers: each float64 [answers]; tokens: supervised ones; reference: their log p.

    log_probs: of a reward model, the scores.
    """

    log_probs: Tensor
    tokens: Tensor
    reference: Tensor | None

    def every_second(self, start: int) -> "Answers":
        """The answers start, start + 2, ..."""
        reference = None if self.reference is None else self.reference[start::2]
        return Answers(self.log_probs[start::2], self.tokens[start::2], reference)


@dataclass(frozen=True)
class PreferenceLoss:
    """The loss that a method section describes, with its defaults filled in."""

    name: str
    beta: float
    gamma: float
    label_smoothing: float
    sft_weight: float
    good_weight: float
    bad_weight: float

    @classmethod
    def of(cls, method: MethodConfig) -> "PreferenceLoss":
        """The loss of this config."""
        if method.name == "reward":
            return cls("reward", 1.0, 0.0, 0.0, 0.0, 1.0, 1.0)
        beta = method.beta or (2.0 if method.loss == "simpo" else 0.1)
        sft = method.sft_weight
        return cls(
            name=method.loss,
            beta=beta,
            gamma=beta / 2 if method.gamma is None else method.gamma,
            label_smoothing=method.label_smoothing,
            sft_weight=sft if sft is not None else float(method.loss == "cpo"),
            good_weight=method.desirable_weight,
            bad_weight=method.undesirable_weight,
        )

    @property
    def has_reference(self) -> bool:
        """Whether the loss compares with the model before training."""
        return self.name in WITH_REFERENCE

    def rewards(self, answers: Answers) -> Tensor:
        """beta times r of each answer."""
        rate = answers.log_probs
        if answers.reference is not None:
            rate = rate - answers.reference
        if self.name in _PER_TOKEN:
            rate = rate / answers.tokens
        return self.beta * rate

    def of_pairs(self, chosen: Answers, rejected: Answers) -> Tensor:
        """The loss of each pair, float64 [pairs]."""
        difference = self.rewards(chosen) - self.rewards(rejected)
        mean_nll = -chosen.log_probs / chosen.tokens
        if self.name == "orpo":
            odds = self._log_odds(chosen) - self._log_odds(rejected)
            return mean_nll - self.beta * F.logsigmoid(odds)
        if self.name == "ipo":
            losses = (difference / self.beta - 1 / (2 * self.beta)) ** 2
        else:
            if self.name == "simpo":
                difference = difference - self.gamma
            swapped = self.label_smoothing
            losses = -(1 - swapped) * F.logsigmoid(difference)
            losses = losses - swapped * F.logsigmoid(-difference)
        return losses + self.sft_weight * mean_nll if self.sft_weight else losses

    def of_judged(self, answers: Answers, good: Tensor, divergence: float) -> Tensor:
        """The loss of each judged answer, float64. good: bool; divergence: z."""
        ahead = self.rewards(answers) - self.beta * divergence
        sign = torch.where(good, 1.0, -1.0).to(ahead)
        weight = torch.where(good, self.good_weight, self.bad_weight).to(ahead)
        return weight * (1 - torch.sigmoid(sign * ahead))

    @staticmethod
    def _log_odds(answers: Answers) -> Tensor:
        """log(p / (1 - p)) of the geometric mean p of an answer's token probabilities."""
        mean = answers.log_probs / answers.tokens
        return mean - torch.log(-torch.expm1(mean))
