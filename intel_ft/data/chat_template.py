"""The tokenizer's own chat_template, rendered once for each sequence of roles; called from
data.templates.

A chat template is a program that returns one string. Here it is given a placeholder in place of
every message, so that what it writes around the messages can be told from the messages: no search
for the completion in the result, hence no completion that could be mistaken for something else.
It also means that a template sees no content, cannot branch on it, and cannot be steered by it.
"""

import re
from typing import TYPE_CHECKING

from intel_ft.data.formats import Message
from intel_ft.data.spans import Marks, Span
from intel_ft.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Private-use characters, which no template writes. The tabs show whether a template strips.
_SLOT = "\t\ue000{}\ue001\t"
_SLOTS = re.compile("(\t?)\ue000([0-9]+)\ue001(\t?)")
_REMEDY = "set data.template to another one (chatml, llama2, alpaca, dolly, none)"

Piece = Span | tuple[int, bool, bool]  # or: message index, strip it left, strip it right


class Scaffold:
    """Writes conversations with a tokenizer's chat_template; remembers each sequence of roles."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", marks: Marks) -> None:
        if not tokenizer.chat_template:
            raise UserError(f"the tokenizer has no chat_template of its own: {_REMEDY}")
        self._tokenizer = tokenizer
        self._marks = marks
        self._known: dict[tuple[str, ...], list[Piece]] = {}

    def spans(self, messages: tuple[Message, ...]) -> list[Span]:
        """The spans of a conversation that ends with an assistant turn.

        The end of an assistant turn is EOS where the template writes it there, and stands at once
        after the completion: space that the template puts between them is left out. If the
        template ends turns with another token (`<|eot_id|>`, `<end_of_turn>`), then that token is
        the end, supervised, and EOS follows it at the very end of the conversation only. If it
        ends turns with no token, EOS is put there. What it writes after the last end is left out.

        Raises UserError if the template fails, or does not show every message just once.
        """
        roles = tuple(message.role for message in messages)
        if roles not in self._known:
            self._known[roles] = self._pieces(roles)
        spans = []
        for piece in self._known[roles]:
            if isinstance(piece, Span):
                spans.append(piece)
                continue
            index, left, right = piece
            message = messages[index]
            if message.role == "assistant":
                spans.append(Span(message.content, "completion"))
            else:
                text = message.whole
                text = text.lstrip() if left else text
                spans.append(Span(text.rstrip() if right else text, "content"))
        return spans

    def _pieces(self, roles: tuple[str, ...]) -> list[Piece]:
        placeholders = [
            {"role": role, "content": _SLOT.format(index)} for index, role in enumerate(roles)
        ]
        try:
            rendered = self._tokenizer.apply_chat_template(placeholders, tokenize=False)
        except Exception as error:  # the template is a foreign program: anything may come out
            words = " ".join(str(error).split())
            raise UserError(
                f"the tokenizer's chat_template refuses the roles {', '.join(roles)} ({words}):"
                f" {_REMEDY}"
            ) from error
        # text, tab, index, tab, text, tab, index, tab, ..., text
        parts = _SLOTS.split(rendered)
        texts, lefts, indices, rights = parts[::4], parts[1::4], parts[2::4], parts[3::4]
        order = [int(index) for index in indices]
        if sorted(order) != list(range(len(roles))) or order[-1:] != [len(roles) - 1]:
            raise UserError(
                f"the tokenizer's chat_template does not show each of the turns {', '.join(roles)}"
                f" just once: {_REMEDY}"
            )
        marks = self._marks
        pieces: list[Piece] = self._peel_bos(texts[0])
        if marks.adds_bos and pieces[:1] != [Span(str(marks.bos), "start")]:
            pieces.insert(0, Span(str(marks.bos), "start"))
        end_of_turn = self._token_at_start(texts[-1]) or marks.eos
        last = len(order) - 1
        for place, (index, left, right, text) in enumerate(
            zip(order, lefts, rights, texts[1:], strict=True)
        ):
            pieces.append((index, not left, not right))
            if roles[index] != "assistant":
                pieces += self._template(text)
                continue
            behind = text.lstrip()
            written = [end for end in (marks.eos, end_of_turn) if behind.startswith(end)]
            end = written[0] if written else marks.eos
            pieces.append(Span(end, "end"))
            if place < last:
                pieces += self._peel_bos(behind.removeprefix(end) if written else text)
            elif end != marks.eos:
                pieces.append(Span(marks.eos, "end"))
        return pieces

    def _token_at_start(self, text: str) -> str | None:
        return next((token for token in self._marks.added if text.lstrip().startswith(token)), None)

    def _peel_bos(self, text: str) -> list[Piece]:
        """Template text, with a BOS in front of it as the token it is."""
        bos = self._marks.bos
        if bos and text.startswith(bos):
            return [Span(bos, "start"), *self._template(text.removeprefix(bos))]
        return self._template(text)

    def _template(self, text: str) -> list[Piece]:
        return [Span(text, "template")] if text else []
