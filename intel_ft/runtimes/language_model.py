"""The interfaces of a model in memory, which eval, generate, chat and export use."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from intel_ft.artifacts.resolve import Artifact
from intel_ft.config_sections import ModelConfig
from intel_ft.errors import UserError
from intel_ft.templates.thoughts import empty_thought_length

Stream = Callable[[str], None]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 is greedy; top_k 0 and top_p 1 are off.

    The same seed gives the same text in the same engine; torch and OpenVINO draw differently.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()  # the answer ends before the first of these texts

    def __post_init__(self) -> None:
        rules = {
            "max_new_tokens must be at least 1": self.max_new_tokens >= 1,
            "temperature must be at least 0": self.temperature >= 0,
            "top_p must be above 0 and at most 1": 0 < self.top_p <= 1,
            "top_k must be at least 0": self.top_k >= 0,
            "repetition_penalty must be above 0": self.repetition_penalty > 0,
            "a stop text must not be empty": all(self.stop),
        }
        for rule, holds in rules.items():
            if not holds:
                raise UserError(rule)


@dataclass(frozen=True)
class Completion:
    """An answer; `stopped` is True where it ended at a stop token or text, not at the limit.

    `new_tokens` is without the stop token; `seconds` covers prompt and answer.
    """

    text: str
    new_tokens: tuple[int, ...]
    seconds: float
    stopped: bool


class LanguageModel(Protocol):
    """A loaded model with its tokenizer."""

    tokenizer: Any
    context_window: int | None  # maximum tokens of prompt plus answer; None if unknown

    def generate(
        self, prompt_tokens: list[int], sampling: Sampling, stream: Stream | None = None
    ) -> Completion:
        """Continue `prompt_tokens`, passing text to `stream` as soon as it is final.

        The streamed pieces, joined, are the completion's text. Raises UserError where the prompt is
        empty or leaves no room in the context window.
        """

    def generate_many(
        self, prompts: list[list[int]], seeds: list[int], sampling: Sampling
    ) -> list[Completion]:
        """Continue `prompts` as a batch, each with its own seed instead of `sampling.seed`.

        Except for rounding, an answer depends on its prompt and seed alone, not on the rest of the
        batch. Raises UserError as `generate` does.
        """

    def logits(
        self, tokens: npt.NDArray[np.int32], positions: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """The next-token logits after each of `positions`: float32 [positions, vocabulary].

        `tokens` is one sequence, [length].
        """


class RewardModel(Protocol):
    """A loaded reward model with its tokenizer."""

    tokenizer: Any

    def score(self, tokens: npt.NDArray[np.int32]) -> float:
        """The reward of a text, int32 [tokens], at its last token."""


def base_config(
    artifact: Artifact, *, trust_remote_code: bool = False, allow_pickle: bool = False
) -> ModelConfig:
    """The model whose weights are loaded: an adapter's base model, any other artifact itself.

    Raises UserError where the adapter names a folder that is not there.
    """
    adapter, base = artifact.kind == "adapter", artifact.base_model
    is_path = base.startswith((".", "/", "~")) or base.count("/") > 1
    if adapter and is_path and not Path(base).expanduser().exists():
        raise UserError(
            f"{artifact.location}: its base model {base} is not there: name its folder or Hub id"
            " with --base"
        )
    return ModelConfig(
        name_or_path=artifact.base_model if adapter else artifact.location,
        revision=artifact.base_revision if adapter else None,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
    )


def tokenizer_config(artifact: Artifact, *, trust_remote_code: bool = False) -> ModelConfig:
    """Where the tokenizer is: in the artifact's folder, else in an adapter's base."""
    if artifact.kind == "adapter" and not (artifact.folder / "tokenizer_config.json").is_file():
        return base_config(artifact, trust_remote_code=trust_remote_code)
    return ModelConfig(name_or_path=artifact.location, trust_remote_code=trust_remote_code)


def answer_limit(prompt_tokens: list[int], max_new_tokens: int, context_window: int | None) -> int:
    """Maximum tokens of the answer: `max_new_tokens`, or what the context window leaves.

    Raises UserError where the prompt is empty or leaves no room.
    """
    if not prompt_tokens:
        raise UserError("the prompt is empty: there is nothing to continue")
    if context_window is None:
        return max_new_tokens
    room = context_window - len(prompt_tokens)
    if room < 1:
        raise UserError(
            f"the prompt has {len(prompt_tokens)} tokens and the model's context window is "
            f"{context_window}: shorten the prompt"
        )
    return min(max_new_tokens, room)


def make_completion(
    tokenizer: Any,
    new_tokens: list[int],
    stops: frozenset[int],
    seconds: float,
    stop_texts: tuple[str, ...] = (),
) -> Completion:
    """The completion with `new_tokens` up to the first stop token.

    Its text also ends before the first of `stop_texts`, and begins after an empty thought, which
    templates such as Qwen3's put in front of an answer.
    """
    end = next((i for i, token in enumerate(new_tokens) if token in stops), None)
    answer = new_tokens[:end]
    text = decode(tokenizer, answer)
    text_end = find_stop_text(text, stop_texts)
    return Completion(
        text=text[:text_end][empty_thought_length(text) :],
        new_tokens=tuple(answer),
        seconds=seconds,
        stopped=end is not None or text_end is not None,
    )


def find_stop_text(text: str, stop_texts: tuple[str, ...]) -> int | None:
    """The position of the first of `stop_texts` in `text`, None if it contains none."""
    return min((at for stop in stop_texts if (at := text.find(stop)) >= 0), default=None)


def decode(tokenizer: Any, tokens: list[int]) -> str:
    """The text of `tokens`, without special tokens and without cleaning up spaces."""
    return str(
        tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    )


def read_context_window(folder: Path) -> int | None:
    """`max_position_embeddings` of config.json in `folder`, or None."""
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    window = values.get("max_position_embeddings")
    return window if isinstance(window, int) else None
