"""Measures the data that a translated config names, where data and tokenizer are on this machine.

Other trainers count packed rows, epochs and steps where a config here needs examples and steps;
which of them are equal depends on the data.
"""

from dataclasses import dataclass
from pathlib import Path

from intel_ft import assets
from intel_ft.config import Config
from intel_ft.errors import EnvironmentProblem, UserError


@dataclass(frozen=True)
class Measured:
    """The examples of data.train, before a share of them is split off, and their tokens.

    with_input: whether one has alpaca's `input`; completions: whether prompt and completion are
    columns of their own.
    """

    examples: int
    tokens: int
    format: str
    with_input: bool
    completions: bool

    @property
    def mean_tokens(self) -> float:
        """Mean length of an example."""
        return self.tokens / self.examples


def measure(config: Config) -> Measured | None:
    """The examples of data.train as `config` reads them; None where it cannot be read here.

    Nothing is fetched: a model or data set on the Hub is not measured.
    """
    if not isinstance(config.data.train, str) or config.data.streaming:
        return None  # sources have formats of their own
    model, data = assets.resolve(config.model.name_or_path), assets.resolve(config.data.train)
    if not Path(model).is_dir() or not Path(data).exists():
        return None
    from intel_ft.data.prepare import prepare
    from intel_ft.models.tokenizer import load_tokenizer

    try:
        tokenizer, compares = load_tokenizer(config.model), config.method.compares
        prepared = prepare(config.data, data, tokenizer, answers=compares)
    except (UserError, EnvironmentProblem):
        return None  # `validate` says what is wrong
    examples = prepared.examples
    return Measured(
        examples=len(examples),
        tokens=len(examples.tokens),
        format=prepared.report.format,
        completions="completion" in prepared.report.format_reason,
        with_input=any(
            message.context
            for conversation in prepared.conversations
            for message in conversation.messages
        ),
    )
