"""The tokenizer's own chat_template, rendered once for each sequence of roles.

A chat template is a program that returns one string. Here it receives a placeholder instead of
every message, so that the text it writes around the messages can be separated from them. The
completion is never searched for in the result, so nothing can be mistaken for it. The template
sees no content either: it can neither branch on it nor be steered by it.
"""

import re
from typing import TYPE_CHECKING

from intel_ft.data.formats import Message
from intel_ft.data.spans import Span, SpecialTokens
from intel_ft.errors import UserError, missing_package

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Private-use characters, which no template writes. The tabs show whether a template strips.
_PLACEHOLDER = "\t\ue000{}\ue001\t"
_PLACEHOLDERS = re.compile("(\t?)\ue000([0-9]+)\ue001(\t?)")
_REMEDY = "set data.template to another template (chatml, llama2, alpaca, dolly, none)"

# A span that the template writes, or a message: its index, strip on the left, strip on the right.
TemplatePart = Span | tuple[int, bool, bool]


class ChatTemplate:
    """Renders conversations with a tokenizer's chat_template; caches each sequence of roles."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", special: SpecialTokens) -> None:
        if not tokenizer.chat_template:
            raise UserError(f"the tokenizer has no chat_template: {_REMEDY}")
        self._tokenizer = tokenizer
        self._special = special
        self._parts_of_roles: dict[tuple[str, ...], list[TemplatePart]] = {}

    def spans(self, messages: tuple[Message, ...]) -> list[Span]:
        """The spans of a conversation that ends with an assistant turn.

        An assistant turn ends with EOS if the template writes it there. EOS directly follows the
        completion: white space that the template puts between them is left out. If the template
        ends turns with another token (`<|eot_id|>`, `<end_of_turn>`), that token is the supervised
        end, and EOS follows it only at the end of the conversation. If the template ends turns
        with no token, EOS is added. Text after the last end is left out.

        Raises UserError if the template fails or does not contain every message exactly once.
        """
        roles = tuple(message.role for message in messages)
        if roles not in self._parts_of_roles:
            self._parts_of_roles[roles] = self._render(roles)
        spans = []
        for part in self._parts_of_roles[roles]:
            if isinstance(part, Span):
                spans.append(part)
                continue
            index, left, right = part
            message = messages[index]
            if message.role == "assistant":
                spans.append(Span(message.content, "completion"))
            else:
                text = message.full_content
                text = text.lstrip() if left else text
                spans.append(Span(text.rstrip() if right else text, "content"))
        return spans

    def _render(self, roles: tuple[str, ...]) -> list[TemplatePart]:
        placeholders = [
            {"role": role, "content": _PLACEHOLDER.format(index)}
            for index, role in enumerate(roles)
        ]
        try:
            rendered = self._tokenizer.apply_chat_template(placeholders, tokenize=False)
        except Exception as error:  # the template is foreign code: it may raise anything
            if missing := missing_package(error):
                raise missing from error
            text = " ".join(str(error).split())
            raise UserError(
                f"the tokenizer's chat_template rejects the roles {', '.join(roles)} ({text}):"
                f" {_REMEDY}"
            ) from error
        # text, tab, index, tab, text, tab, index, tab, ..., text
        fields = _PLACEHOLDERS.split(rendered)
        texts, lefts, indices, rights = fields[::4], fields[1::4], fields[2::4], fields[3::4]
        order = [int(index) for index in indices]
        if sorted(order) != list(range(len(roles))) or order[-1:] != [len(roles) - 1]:
            raise UserError(
                f"the tokenizer's chat_template does not contain each of the turns"
                f" {', '.join(roles)} exactly once: {_REMEDY}"
            )
        special = self._special
        parts: list[TemplatePart] = self._split_off_bos(texts[0])
        if special.adds_bos and parts[:1] != [Span(str(special.bos), "start")]:
            parts.insert(0, Span(str(special.bos), "start"))
        end_of_turn = self._token_at_start(texts[-1]) or special.eos
        last = len(order) - 1
        for place, (index, left, right, text) in enumerate(
            zip(order, lefts, rights, texts[1:], strict=True)
        ):
            parts.append((index, not left, not right))
            if roles[index] != "assistant":
                parts += self._template(text)
                continue
            following = text.lstrip()
            written = [end for end in (special.eos, end_of_turn) if following.startswith(end)]
            end = written[0] if written else special.eos
            parts.append(Span(end, "end"))
            if place < last:
                parts += self._split_off_bos(following.removeprefix(end) if written else text)
            elif end != special.eos:
                parts.append(Span(special.eos, "end"))
        return parts

    def _token_at_start(self, text: str) -> str | None:
        added = self._special.added
        return next((token for token in added if text.lstrip().startswith(token)), None)

    def _split_off_bos(self, text: str) -> list[TemplatePart]:
        """Template text; a BOS at its start becomes a span of kind `start`."""
        bos = self._special.bos
        if bos and text.startswith(bos):
            return [Span(bos, "start"), *self._template(text.removeprefix(bos))]
        return self._template(text)

    def _template(self, text: str) -> list[TemplatePart]:
        return [Span(text, "template")] if text else []
