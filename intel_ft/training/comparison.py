"""What a preference method computes from the answers in a packed row, and what it reports.

A row has whole pairs, so that a row's loss needs nothing from another one. The sums of all rows of
all ranks, divided by the number of examples in the global batch, are the step's loss and measures.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from intel_ft.batching.plan import IntArray
from intel_ft.batching.row import Row, build_row
from intel_ft.models.answer_log_probs import answer_log_probs
from intel_ft.models.reward import answer_scores
from intel_ft.templates.answers import Compared, Judged
from intel_ft.training.preference_loss import Answers, PreferenceLoss

FloatArray = npt.NDArray[np.float64]

WIDTH = 9
"""The loss, then for chosen or good answers, and again for rejected or bad ones: how many, rewards,
log-probabilities; then how many were told apart, and KTO's divergence."""


@dataclass(frozen=True)
class Reference:
    """Log-probabilities of answers under the model before training, float64 [answers].

    others: those of `Judged.others`.
    """

    answers: FloatArray
    others: FloatArray | None = None


@dataclass(frozen=True)
class Comparison:
    """The answers of the training or the validation set, and the loss that compares them."""

    loss: PreferenceLoss
    examples: Compared
    reference: Reference | None = None

    def row_sums(
        self,
        network: Any,
        row: Row,
        indices: IntArray,
        *,
        packed: bool,
        dtype: torch.dtype,
        divergence: float = 0.0,
    ) -> Tensor:
        """The sums over the examples with these indices, which `row` has: float32 [WIDTH].

        The first is the loss, with its gradient. divergence: KTO's z of the global batch.
        """
        value_of = answer_scores if self.loss.name == "reward" else answer_log_probs
        log_probs = value_of(network, row, packed=packed, dtype=dtype)
        answers = self._answers(log_probs, row, indices)
        if isinstance(self.examples, Judged):
            good = torch.from_numpy(self.examples.good[indices]).to(log_probs.device)
            losses = self.loss.of_judged(answers, good, divergence)
            with torch.no_grad():
                ahead = self.loss.rewards(answers) > self.loss.beta * divergence
                parts = [self._measures(answers, chosen) for chosen in (good, ~good)]
                right = (ahead == good).sum()
        else:
            chosen, rejected = answers.every_second(0), answers.every_second(1)
            losses = self.loss.of_pairs(chosen, rejected)
            with torch.no_grad():
                right = (self.loss.rewards(chosen) > self.loss.rewards(rejected)).sum()
                parts = [self._measures(one, None) for one in (chosen, rejected)]
        kto = isinstance(self.examples, Judged)
        z = losses.new_tensor([divergence * len(indices) if kto else torch.nan])
        return torch.cat([losses.sum()[None], *parts, right[None].to(z), z]).float()

    def divergence_sum(
        self, network: Any, rows: Sequence[IntArray], *, packed: bool, dtype: torch.dtype
    ) -> float:
        """KTO's r, summed over these examples' prompts with answers to other prompts."""
        assert isinstance(self.examples, Judged)
        assert self.reference is not None
        assert self.reference.others is not None
        total = 0.0
        was_training = network.training
        network.eval()
        for indices in rows:
            row = build_row(self.examples.others, indices)
            with torch.no_grad():
                now = answer_log_probs(network, row, packed=packed, dtype=dtype)
            total += float(now.sum()) - float(self.reference.others[indices].sum())
        network.train(was_training)
        return total

    def _answers(self, log_probs: Tensor, row: Row, indices: IntArray) -> Answers:
        """The answers of a row; `indices` are those of its examples."""
        count, read_by, _ = row.read_by()
        tokens = np.bincount(read_by, minlength=count).astype(np.float64)
        reference = None
        if self.reference is not None:
            _, answers = self.examples.segments(indices)
            reference = torch.from_numpy(self.reference.answers[answers]).to(log_probs)
        return Answers(log_probs, torch.from_numpy(tokens).to(log_probs), reference)

    def _measures(self, answers: Answers, which: Tensor | None) -> Tensor:
        """How many answers, their rewards and their log-probabilities, float64 [3]."""
        rewards, log_probs = self.loss.rewards(answers), answers.log_probs
        if which is not None:
            rewards, log_probs = rewards[which], log_probs[which]
        if self.loss.name == "reward":
            log_probs = torch.full_like(log_probs, torch.nan)  # it has none
        count = rewards.new_tensor(float(len(rewards)))
        return torch.stack([count, rewards.sum(), log_probs.sum()])


def measures(sums: FloatArray, examples: int) -> dict[str, float]:
    """The means that are reported, from the sums [WIDTH] over so many examples, without the loss.

    Means over no answers (a batch of KTO without bad ones) are left out, and so are measures that
    the loss does not have, which are NaN.
    """
    _, *parts, right, divergence = sums.tolist()
    found: dict[str, float] = {"accuracy": right / max(examples, 1)}
    for name, (count, rewards, log_probs) in (("chosen", parts[:3]), ("rejected", parts[3:])):
        if count:
            found |= {f"reward_{name}": rewards / count, f"logp_{name}": log_probs / count}
    if {"reward_chosen", "reward_rejected"} <= found.keys():
        found["reward_margin"] = found["reward_chosen"] - found["reward_rejected"]
    found["kl"] = divergence / max(examples, 1)
    return {name: value for name, value in found.items() if not math.isnan(value)}
