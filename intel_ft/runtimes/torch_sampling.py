"""Logits processors for Transformers' generate(): seeds per row, repetition penalty, stop texts."""

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
    """Temperature, top-k and top-p, then Gumbel noise, which turns argmax into sampling.

    argmax(log p + g) with Gumbel-distributed g is a sample from p (Gumbel 1954; Maddison et al.
    2014). Each row's noise comes from its own generator, so the token drawn for a prompt does not
    depend on the rest of the batch.
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
    """Makes tokens that occurred before less likely (Keskar et al. 2019).

    Transformers' processor also penalizes the padding before a row, so that an answer would depend
    on the rest of the batch.
    """

    def __init__(self, penalty: float, starts: list[int]) -> None:
        self._penalty, self._starts = penalty, starts

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """scores: [rows, vocabulary]; starts: where each row's prompt begins in input_ids."""
        scores = scores.clone()
        for row, start in enumerate(self._starts):
            used = input_ids[row, start:]
            before = scores[row, used]
            scores[row, used] = torch.where(
                before < 0, before * self._penalty, before / self._penalty
            )
        return scores


class StopTexts(StoppingCriteria):  # type: ignore[misc]
    """Ends a row whose new text contains a stop text, wherever token boundaries are in it."""

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
        ended = [
            any(stop in text for stop in self._texts)
            for text in (decode(self._tokenizer, tail) for tail in tails)
        ]
        return torch.tensor(ended)
