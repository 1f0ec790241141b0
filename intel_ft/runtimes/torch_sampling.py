"""What transformers' generate() is given so that each row of a batch is drawn with a seed of its
own, and ends at stop texts; called from inference.torch_lm.
"""

from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from intel_ft.runtimes.language_model import Sampling, decode


class SeededRows(LogitsProcessor):  # type: ignore[misc]
    """Temperature, top-k and top-p, then noise that makes the likeliest token a drawn one.

    argmax(log p + g) with g Gumbel-distributed draws from p (Gumbel 1954; Maddison et al. 2014),
    so that a row's noise can come from a generator of its own: what is drawn for a prompt does not
    depend on what else is in the batch.
    """

    def __init__(self, sampling: Sampling, seeds: list[int]) -> None:
        warpers: list[Any] = [TemperatureLogitsWarper(sampling.temperature)]
        if sampling.top_k:
            warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            warpers.append(TopPLogitsWarper(sampling.top_p))
        self._warpers = LogitsProcessorList(warpers)
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """scores: [rows, vocabulary], float32."""
        warped: torch.Tensor = self._warpers(input_ids, scores)
        noise = torch.stack(
            [torch.empty_like(warped[0]).exponential_(generator=g) for g in self._generators]
        )
        return warped - noise.log()


class RepetitionPenalty(LogitsProcessor):  # type: ignore[misc]
    """Makes what was said less likely (Keskar et al. 2019). Transformers' own takes the padding in
    front of a row for said, so that an answer would depend on the rest of the batch.
    """

    def __init__(self, penalty: float, starts: list[int]) -> None:
        self._penalty, self._starts = penalty, starts

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """scores: [rows, vocabulary]; starts: where each row's prompt begins in input_ids."""
        scores = scores.clone()
        for row, start in enumerate(self._starts):
            said = input_ids[row, start:]
            before = scores[row, said]
            scores[row, said] = torch.where(
                before < 0, before * self._penalty, before / self._penalty
            )
        return scores


class StopTexts(StoppingCriteria):  # type: ignore[misc]
    """Ends a row whose new text holds a stop text; its tokens may be cut anywhere in it."""

    def __init__(self, tokenizer: Any, texts: tuple[str, ...], prompt_width: int) -> None:
        self._tokenizer = tokenizer
        self._texts = texts
        self._start = prompt_width
        # A token is at least a byte, a character at most four.
        self._tail = 4 * max(map(len, texts), default=0) + 8

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        """input_ids: [rows, prompt and answer]; True for each row that has ended."""
        if not self._texts:
            return torch.zeros(len(input_ids), dtype=torch.bool)
        tails = input_ids[:, max(self._start, input_ids.shape[1] - self._tail) :].tolist()
        found = [
            any(stop in text for stop in self._texts)
            for text in (decode(self._tokenizer, tail) for tail in tails)
        ]
        return torch.tensor(found)
