"""Spans, which templates produce and encode.py consumes, and a tokenizer's special tokens."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from intel_ft.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Kind = Literal["start", "template", "content", "written", "completion", "end", "text"]


class Span(NamedTuple):
    """A part of one example's text, with the rule for encoding it.

    kind: `start` (the BOS token) and `end` (a token that ends an assistant turn; supervised) are
    one token each, by name; `template` is control text, whose special tokens are parsed;
    `written` is control text that belongs to an answer, such as a tool call (supervised);
    `content` (words of user and system) and `completion` (words of the assistant; supervised)
    never become special tokens; `text` is ready-made: its special tokens are parsed, and it is
    supervised. trained: False for what would be supervised and is context only.
    """

    text: str
    kind: Kind
    trained: bool = True


def without_loss_on(spans: list[Span], trained: Iterable[bool]) -> list[Span]:
    """The spans with those answers, and their ends, out of the loss for which `trained` is False.

    trained: one flag for each completion, in order.
    """
    flags = iter(trained)
    marked, flag = [], True
    for span in spans:
        if span.kind == "completion":
            flag = next(flags)
        marked.append(span._replace(trained=flag) if span.kind in ("completion", "end") else span)
    return marked


@dataclass(frozen=True)
class SpecialTokens:
    """The tokens that templates place around turns, by their text.

    adds_bos: whether the tokenizer itself puts BOS in front of what it encodes. added: texts of all
    added tokens, longest first, so that the first match at the start of a string is the longest.
    """

    bos: str | None
    eos: str
    adds_bos: bool
    added: tuple[str, ...]


def special_tokens_of(tokenizer: "PreTrainedTokenizerFast") -> SpecialTokens:
    """The special tokens of `tokenizer`. Raises UserError if it cannot be used for training."""
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UserError(
            f"{tokenizer.name_or_path}: the tokenizer is not a fast one (no tokenizer.json):"
            " convert it with AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"{tokenizer.name_or_path}: the tokenizer has no EOS token, so the model cannot learn"
            " where an answer ends: set eos_token in tokenizer_config.json"
        )
    bos = tokenizer.bos_token
    first = tokenizer.backend_tokenizer.encode("a", add_special_tokens=True).ids[:1]
    added = [token.content for token in tokenizer.added_tokens_decoder.values()]
    return SpecialTokens(
        bos=bos,
        eos=tokenizer.eos_token,
        adds_bos=bos is not None and first == [tokenizer.bos_token_id],
        added=tuple(sorted(added, key=len, reverse=True)),
    )
