"""Compare the logits of two models on a few fixed probe texts."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from intel_ft.runtimes.language_model import LanguageModel

PROBE_TEXTS = (
    'def add(a, b):\n    """Return the sum of a and b."""\n    return a + b\n',
    "Below is an instruction. Write a response that completes it.\n\nName three rivers of Europe.",
    "for i, line in enumerate(open(path)):\n    if not line.strip():\n        continue\n",
)
MAX_TOKENS = 128  # of each text


@dataclass(frozen=True)
class Agreement:
    """How far one model's logits are from a reference's.

    `relative_error`: RMS of the difference of the logits over RMS of the reference's, after
    subtracting each position's mean over the vocabulary (which softmax ignores); NaN if either
    contains one. `top1`: share of positions where both have the same most likely token.
    """

    relative_error: float
    top1: float


def probe_sequences(tokenizer: Any) -> list[npt.NDArray[np.int32]]:
    """The token ids of PROBE_TEXTS, int32 [tokens] each."""
    encoded = (tokenizer(text)["input_ids"][:MAX_TOKENS] for text in PROBE_TEXTS)
    return [np.array(tokens, dtype=np.int32) for tokens in encoded if len(tokens) > 1]


def probe_logits(
    model: LanguageModel, sequences: list[npt.NDArray[np.int32]]
) -> npt.NDArray[np.float32]:
    """Logits at every position of every sequence, float32 [all positions, vocabulary]."""
    return np.concatenate([model.logits(tokens, np.arange(len(tokens))) for tokens in sequences])


def compare_logits(reference: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> Agreement:
    """How well `other` agrees with `reference`, both float32 [positions, vocabulary]."""
    first = reference - reference.mean(axis=1, keepdims=True)
    second = other - other.mean(axis=1, keepdims=True)
    error = np.sqrt(np.square(second - first).mean() / np.square(first).mean())
    same = reference.argmax(axis=1) == other.argmax(axis=1)
    return Agreement(relative_error=float(error), top1=float(same.mean()))


def typical_error(reference: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    """The median over positions of the relative error of a position's logits.

    Rounding sends a token of a mixture of experts to another expert where two of them are almost
    equally likely. At these positions the error is many times that of the others, whichever way a
    weight was rounded, and an RMS over all positions is theirs. NaN if either contains one.
    """
    first = reference - reference.mean(axis=1, keepdims=True)
    second = other - other.mean(axis=1, keepdims=True)
    size = np.square(first).mean(axis=1)  # 0 where all logits are equal, as of a padding token
    errors = np.square(second - first).mean(axis=1) / np.maximum(size, np.finfo(np.float32).tiny)
    return float(np.median(np.sqrt(errors)))
