"""What eval, generate and chat ask of a model, whichever engine runs it; called from cli, export
and the rest of inference.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from intel_ft.artifacts.resolve import Artifact
from intel_ft.config import ModelConfig
from intel_ft.errors import UserError

Stream = Callable[[str], None]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 is greedy; top_k 0 and top_p 1 cut nothing off.

    The same seed gives the same text again from the same engine, not from the other one.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()  # the answer ends in front of the first of these texts

    def __post_init__(self) -> None:
        within = {
            "max_new_tokens must be at least 1": self.max_new_tokens >= 1,
            "temperature must be at least 0": self.temperature >= 0,
            "top_p must be above 0 and at most 1": 0 < self.top_p <= 1,
            "top_k must be at least 0": self.top_k >= 0,
            "repetition_penalty must be above 0": self.repetition_penalty > 0,
            "a stop text must not be empty": all(self.stop),
        }
        for rule, holds in within.items():
            if not holds:
                raise UserError(rule)


@dataclass(frozen=True)
class Completion:
    """What a model answered; `stopped` is True where it ended by itself.

    `new_tokens` leaves out the token that stopped it; `seconds` covers prompt and answer.
    """

    text: str
    new_tokens: tuple[int, ...]
    seconds: float
    stopped: bool


class LanguageModel(Protocol):
    """A model with its tokenizer, loaded and ready."""

    tokenizer: Any
    context_window: int | None  # most tokens of prompt and answer together; None if not stated

    def generate(
        self, prompt_tokens: list[int], sampling: Sampling, stream: Stream | None = None
    ) -> Completion:
        """Continue `prompt_tokens`, handing text to `stream` as soon as it is certain.

        What was streamed, joined, is the completion's text. Raises UserError where the prompt is
        empty or leaves no room in the context window.
        """

    def generate_many(
        self, prompts: list[list[int]], seeds: list[int], sampling: Sampling
    ) -> list[Completion]:
        """Continue `prompts` together, each with a seed of its own in place of `sampling.seed`.

        An answer depends on its prompt and seed, not on what else is in the batch, but for
        rounding. Raises UserError as `generate` does.
        """

    def logits(
        self, tokens: npt.NDArray[np.int32], positions: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """The next-token logits after each of `positions`: float32 [positions, vocabulary].

        `tokens` is one sequence, [length].
        """


def base_config(
    artifact: Artifact, *, trust_remote_code: bool = False, allow_pickle: bool = False
) -> ModelConfig:
    """The weights underneath: an adapter's base model, any other artifact itself."""
    adapter = artifact.kind == "adapter"
    return ModelConfig(
        name_or_path=artifact.base_model if adapter else artifact.location,
        revision=artifact.base_revision if adapter else None,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
    )


def tokenizer_config(artifact: Artifact, *, trust_remote_code: bool = False) -> ModelConfig:
    """Where the tokenizer is: in the artifact's own folder, or an adapter's base without one."""
    if artifact.kind == "adapter" and not (artifact.folder / "tokenizer_config.json").is_file():
        return base_config(artifact, trust_remote_code=trust_remote_code)
    return ModelConfig(name_or_path=artifact.location, trust_remote_code=trust_remote_code)


def room_for_answer(prompt_tokens: list[int], wanted: int, context_window: int | None) -> int:
    """How many tokens the answer may have: `wanted`, or what the window leaves of it.

    Raises UserError where the prompt is empty or leaves nothing.
    """
    if not prompt_tokens:
        raise UserError("the prompt is empty: there is nothing to continue")
    if context_window is None:
        return wanted
    room = context_window - len(prompt_tokens)
    if room < 1:
        raise UserError(
            f"the prompt has {len(prompt_tokens)} tokens and the model's context window is "
            f"{context_window}: shorten the prompt"
        )
    return min(wanted, room)


def finish(
    tokenizer: Any,
    new_tokens: list[int],
    stops: frozenset[int],
    seconds: float,
    stop_texts: tuple[str, ...] = (),
) -> Completion:
    """The completion of `new_tokens`, cut before the first stop token, its text also before the
    first stop text.
    """
    end = next((i for i, token in enumerate(new_tokens) if token in stops), None)
    kept = new_tokens[:end]
    text = decode(tokenizer, kept)
    place = first_stop(text, stop_texts)
    stopped = end is not None or place is not None
    return Completion(text[:place], tuple(kept), seconds, stopped)


def first_stop(text: str, stop_texts: tuple[str, ...]) -> int | None:
    """Where the first of `stop_texts` begins in `text`; None if none is in it."""
    return min((at for stop in stop_texts if (at := text.find(stop)) >= 0), default=None)


def decode(tokenizer: Any, tokens: list[int]) -> str:
    """Text of `tokens` as they are: no special tokens, and no spaces tidied away."""
    return str(
        tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    )


def read_context_window(folder: Path) -> int | None:
    """`max_position_embeddings` of config.json in `folder`, or None."""
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    window = values.get("max_position_embeddings")
    return window if isinstance(window, int) else None
