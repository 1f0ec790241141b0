"""The pieces that templates produce and encode.py consumes; called from within data only."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from intel_ft.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Kind = Literal["start", "template", "content", "completion", "end", "text"]


class Span(NamedTuple):
    """A stretch of one example's text.

    kind: `start` (the BOS token) and `end` (a token that ends an assistant turn; supervised) are
    one token each, by name; `template` is control text, whose special tokens are parsed;
    `content` (user's and system's words) and `completion` (assistant's words; supervised) never
    become special tokens; `text` is ready-made: special tokens parsed, all of it supervised.
    """

    text: str
    kind: Kind


@dataclass(frozen=True)
class Marks:
    """The tokens that templates place around turns, by their text.

    adds_bos: the tokenizer itself puts BOS in front of what it encodes. added: texts of all added
    tokens, longest first, so that the first one a string starts with is the one meant.
    """

    bos: str | None
    eos: str
    adds_bos: bool
    added: tuple[str, ...]


def marks_of(tokenizer: "PreTrainedTokenizerFast") -> Marks:
    """What `tokenizer` says about itself. Raises UserError if it cannot be used for training."""
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UserError(
            f"{tokenizer.name_or_path}: has no tokenizer.json (a fast tokenizer): convert it with"
            " AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"{tokenizer.name_or_path}: the tokenizer has no EOS token, so a model could not learn"
            " where an answer ends: set eos_token in tokenizer_config.json"
        )
    bos = tokenizer.bos_token
    first = tokenizer.backend_tokenizer.encode("a", add_special_tokens=True).ids[:1]
    added = [token.content for token in tokenizer.added_tokens_decoder.values()]
    return Marks(
        bos=bos,
        eos=tokenizer.eos_token,
        adds_bos=bos is not None and first == [tokenizer.bos_token_id],
        added=tuple(sorted(added, key=len, reverse=True)),
    )
