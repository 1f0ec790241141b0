"""Evaluate a model on a validation set: loss, perplexity, and the answers it generates."""

import ast
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from intel_ft.data.prepare import Prepared
from intel_ft.errors import IntelFTError, UserError
from intel_ft.runtimes.language_model import LanguageModel, Sampling
from intel_ft.templates.answers import Compared, Pairs
from intel_ft.templates.examples import Examples
from intel_ft.templates.formats import Conversation
from intel_ft.templates.prompt import prompt_tokens
from intel_ft.templates.template import Template
from intel_ft.templates.thoughts import split_thought

Progress = Callable[[int, int], None]  # done, total


@dataclass(frozen=True)
class EvalResult:
    """`loss` is in nats per supervised token over all examples, `perplexity` is exp(loss).

    `exact_match` and `parses` are shares of the `generated` answers, None where there are none:
    equal to the reference except for outer white space, and accepted by `ast.parse`. `loss_on`: the
    supervised tokens, as in data.loss_on. Of preference data, all of this is about the chosen or
    good answers; `pair_accuracy` is the share of pairs whose chosen answer is more likely.
    `mean_length`: characters of a generated answer.
    """

    loss: float
    perplexity: float
    supervised_tokens: int
    examples: int
    generated: int = 0
    exact_match: float | None = None
    parses: float | None = None
    loss_on: str = "completion"
    pair_accuracy: float | None = None
    mean_length: float | None = None


@dataclass(frozen=True)
class Answers:
    """How greedy answers compare with the references; the shares as in `EvalResult`."""

    generated: int
    exact_match: float | None
    parses: float | None
    mean_length: float | None = None


def evaluate(
    model: LanguageModel,
    prepared: Prepared,
    *,
    system_prompt: str | None = None,
    generate: int = 0,
    max_new_tokens: int = 256,
    progress: Progress | None = None,
) -> EvalResult:
    """Evaluate `model` on `prepared`, with greedy answers to its first `generate` conversations.

    The loss is the mean over supervised tokens. Examples are computed one at a time: without
    padding, and without attention across examples. Raises UserError where nothing is supervised,
    IntelFTError where the loss is not finite.
    """
    pairs = prepared.examples
    if isinstance(pairs, Compared):
        prepared = prepared.good_answers()
    examples = prepared.examples
    total = 0.0
    for i in range(len(examples)):
        total += example_loss(model, examples, i)
        if progress:
            progress(i + 1, len(examples))
    supervised = int(examples.supervised_counts.sum())
    if supervised == 0:
        raise UserError("nothing to evaluate: no supervised token in the data")
    loss = total / supervised
    answers = check_answers(model, prepared, system_prompt, generate, max_new_tokens)
    return EvalResult(
        loss=loss,
        perplexity=math.exp(loss) if loss < 700 else math.inf,
        supervised_tokens=supervised,
        examples=len(examples),
        generated=answers.generated,
        exact_match=answers.exact_match,
        parses=answers.parses,
        mean_length=answers.mean_length,
        pair_accuracy=pair_accuracy(model, pairs) if isinstance(pairs, Pairs) else None,
    )


def pair_accuracy(model: LanguageModel, pairs: Pairs) -> float:
    """The share of pairs whose chosen answer, as a whole, is more likely than the rejected one."""
    losses = [example_loss(model, pairs.answers, i) for i in range(2 * len(pairs))]
    return float(np.mean([a < b for a, b in zip(losses[::2], losses[1::2], strict=True)]))


def example_loss(model: LanguageModel, examples: Examples, index: int) -> float:
    """Sum of cross-entropy, in nats, over the supervised tokens of one example."""
    tokens, supervised = examples[index]
    targets = np.flatnonzero(supervised)
    if len(targets) == 0:
        return 0.0
    logits = model.logits(tokens, targets - 1)
    loss = float(cross_entropy(logits, tokens[targets]).sum())
    if not math.isfinite(loss):
        raise IntelFTError(f"the loss of example {index + 1} is {loss}: the model is broken")
    return loss


def cross_entropy(
    logits: npt.NDArray[np.float32], targets: npt.NDArray[np.int32]
) -> npt.NDArray[np.float64]:
    """-log softmax(logits)[target] of each row; logits [n, vocabulary], targets [n]."""
    highest = logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(logits - highest).sum(axis=1, dtype=np.float64))
    picked = np.take_along_axis(logits - highest, targets[:, None].astype(np.int64), axis=1)
    losses: npt.NDArray[np.float64] = log_sum - picked[:, 0]
    return losses


def is_python(text: str) -> bool:
    """True if `text` is at least one statement of Python that parses."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SyntaxWarning, from escapes in generated strings
            return bool(ast.parse(text.strip()).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def check_answers(
    model: LanguageModel,
    prepared: Prepared,
    system_prompt: str | None,
    count: int,
    max_new_tokens: int,
) -> Answers:
    """Compare the greedy answers to the first `count` conversations with the references."""
    pairs = answers_and_references(model, prepared, system_prompt, count, max_new_tokens)
    return compare_answers(pairs)


def answers_and_references(
    model: LanguageModel,
    prepared: Prepared,
    system_prompt: str | None,
    count: int,
    max_new_tokens: int,
) -> list[tuple[str, str]]:
    """The greedy answers to the first `count` conversations, each with the reference."""
    conversations = answerable(prepared, count)
    answers = greedy_answers(model, prepared.template, conversations, system_prompt, max_new_tokens)
    references = [one.messages[-1].content for one in conversations]
    return list(zip(answers, references, strict=True))


def compare_answers(pairs: Sequence[tuple[str, str]]) -> Answers:
    """Compare answers with their references."""
    return Answers(
        generated=len(pairs),
        exact_match=_share([is_exact_match(answer, reference) for answer, reference in pairs]),
        parses=_share([is_python(answer) for answer, _ in pairs]),
        mean_length=float(np.mean([len(answer) for answer, _ in pairs])) if pairs else None,
    )


def is_exact_match(answer: str, reference: str) -> bool:
    """Whether both are equal, but for white space around them and around their thoughts."""
    return _words(answer) == _words(reference)


def answerable(prepared: Prepared, count: int) -> list[Conversation]:
    """The first `count` conversations that end with an assistant's words, and not a tool call."""
    return [
        conversation
        for conversation in prepared.conversations
        if conversation.messages
        and conversation.messages[-1].role == "assistant"
        and not conversation.messages[-1].calls
    ][:count]


def greedy_answers(
    model: LanguageModel,
    template: Template,
    conversations: Sequence[Conversation],
    system_prompt: str | None,
    max_new_tokens: int,
) -> list[str]:
    """The greedy answers of `model` in place of each conversation's last turn."""
    sampling = Sampling(max_new_tokens=max_new_tokens)
    return [
        model.generate(
            prompt_tokens(
                model.tokenizer, template, one.messages[:-1], system_prompt, tools=one.tools
            ),
            sampling,
        ).text
        for one in conversations
    ]


def _words(answer: str) -> str | tuple[str, str]:
    """An answer without white space around it, or its thought and the rest of it.

    A thought that the prompt opens has no `<think>` in the answer.
    """
    thought = split_thought(answer)
    return answer.strip() if thought is None else (thought[0].strip(), thought[1].strip())


def _share(hits: list[bool]) -> float | None:
    return sum(hits) / len(hits) if hits else None
