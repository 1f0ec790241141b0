"""Whether two models say the same: their logits on a few fixed texts; called from export.merge."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from intel_ft.runtimes.language_model import LanguageModel

TEXTS = (
    'def add(a, b):\n    """Return the sum of a and b."""\n    return a + b\n',
    "Below is an instruction. Write a response that completes it.\n\nName three rivers of Europe.",
    "for i, line in enumerate(open(path)):\n    if not line.strip():\n        continue\n",
)
LONGEST = 128  # tokens of each text


@dataclass(frozen=True)
class Agreement:
    """How far `other` is from `reference`.

    `relative_error`: RMS of the difference of their logits over RMS of the reference's, each
    position's mean over the vocabulary taken away first (softmax does not see it); NaN if either
    holds one. `top1`: share of positions whose likeliest token is the same.
    """

    relative_error: float
    top1: float


def probe(tokenizer: Any) -> list[npt.NDArray[np.int32]]:
    """The token sequences that are compared, int32 [tokens] each."""
    encoded = (tokenizer(text)["input_ids"][:LONGEST] for text in TEXTS)
    return [np.array(tokens, dtype=np.int32) for tokens in encoded if len(tokens) > 1]


def probe_logits(
    model: LanguageModel, sequences: list[npt.NDArray[np.int32]]
) -> npt.NDArray[np.float32]:
    """Logits at every position of every sequence, float32 [all positions, vocabulary]."""
    return np.concatenate([model.logits(tokens, np.arange(len(tokens))) for tokens in sequences])


def compare(reference: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> Agreement:
    """How well `other` agrees with `reference`, both float32 [positions, vocabulary]."""
    first = reference - reference.mean(axis=1, keepdims=True)
    second = other - other.mean(axis=1, keepdims=True)
    error = np.sqrt(np.square(second - first).mean() / np.square(first).mean())
    same = reference.argmax(axis=1) == other.argmax(axis=1)
    return Agreement(float(error), float(same.mean()))
