"""Adapters as they are served: OpenVINO GenAI applies them to the IR of their base."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from intel_ft.export.logit_agreement import probe_sequences
from intel_ft.runtimes.ir_logits import IRLogits
from intel_ft.runtimes.language_model import Sampling
from intel_ft.runtimes.openvino_lm import OpenVINOLM

PROBE_POSITIONS = 24  # positions whose next token is compared with torch
ANSWER_TOKENS = 24


@dataclass(frozen=True)
class TorchReference:
    """What torch computes: the most likely token after each of `prefixes`, and a greedy answer."""

    prefixes: list[list[int]]
    next_tokens: list[int]
    answer: tuple[int, ...]


def torch_reference(model: Any) -> TorchReference:
    """Compute what an adapter at run time is compared with."""
    sequences = probe_sequences(model.tokenizer)
    positions = [(i, at) for i, tokens in enumerate(sequences) for at in range(1, len(tokens))]
    chosen = [positions[int(k)] for k in np.linspace(0, len(positions) - 1, PROBE_POSITIONS)]
    prefixes, next_tokens = [], []
    for index, at in chosen:
        tokens = sequences[index]
        logits = model.logits(tokens[: at + 1], np.array([at]))
        prefixes.append([int(token) for token in tokens[: at + 1]])
        next_tokens.append(int(logits[0].argmax()))
    answer = model.generate(prefixes[0], Sampling(max_new_tokens=ANSWER_TOKENS)).new_tokens
    return TorchReference(prefixes, next_tokens, answer)


class GenAIRuntime:
    """GenAI's pipeline on the base's IR, with one adapter at a time or none."""

    def __init__(self, folder: Path, files: list[Path]) -> None:
        import openvino_genai

        self._genai = openvino_genai
        self._adapters = [openvino_genai.Adapter(str(file)) for file in files]
        self._pipeline = openvino_genai.LLMPipeline(
            str(folder), "CPU", adapters=openvino_genai.AdapterConfig(self._adapters)
        )

    def top1(self, index: int | None, reference: TorchReference) -> float:
        """Share of the prefixes where adapter `index` (None: none) gives torch's next token."""
        pairs = zip(reference.prefixes, reference.next_tokens, strict=True)
        same = [self._generate(index, prefix, 1)[:1] == (token,) for prefix, token in pairs]
        return sum(same) / PROBE_POSITIONS

    def same_answer(self, index: int, reference: TorchReference) -> bool:
        """Whether the greedy answer is torch's."""
        answer = self._generate(index, reference.prefixes[0], ANSWER_TOKENS)
        return answer == reference.answer

    def _generate(self, index: int | None, prefix: list[int], count: int) -> tuple[int, ...]:
        import openvino

        config = self._pipeline.get_generation_config()
        config.max_new_tokens, config.do_sample = count, False
        active = [] if index is None else [self._adapters[index]]
        config.adapters = self._genai.AdapterConfig(active)
        prompt = openvino.Tensor(np.array([prefix], dtype=np.int64))
        return tuple(self._pipeline.generate(prompt, config).tokens[0])


class AdaptedIR(OpenVINOLM):
    """The IR in `folder` with one adapter: GenAI applies it to answer, and it is added for logits.

    adapter: a LoRA file whose scaling is folded in.
    """

    def __init__(self, folder: Path, tokenizer: Any, adapter: Path) -> None:
        super().__init__(folder, tokenizer)
        self._adapter = adapter

    def _pipeline(self) -> Any:
        import openvino_genai

        adapters = openvino_genai.AdapterConfig(openvino_genai.Adapter(str(self._adapter)))
        return openvino_genai.LLMPipeline(str(self._folder), "CPU", adapters=adapters)

    def _logits(self) -> IRLogits:
        return IRLogits(self._folder, self._properties, self._adapter)
