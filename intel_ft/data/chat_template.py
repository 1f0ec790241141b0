"""The tokenizer's own chat_template, rendered once for each sequence of roles.

A chat template is a program that returns one string. Here it receives a placeholder instead of
every message, so that the text it writes around the messages can be separated from them. The
completion is never searched for in the result, so nothing can be mistaken for it. The template
sees no content either: it can neither branch on it nor be steered by it.

The template is asked twice: for the whole conversation, and for the prompt that a server sends
(`add_generation_prompt`). What the whole conversation has between that prompt and the answer, such
as Qwen3's empty thought or the name of a channel, is what the model has to write: it is supervised.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from intel_ft.data.control_tokens import ORDINARY, completion_controls
from intel_ft.data.formats import Message
from intel_ft.data.spans import Span, SpecialTokens
from intel_ft.data.thoughts import CLOSE, GAP, OPEN, Opening, opening, split_thought
from intel_ft.errors import UserError, missing_package

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Private-use characters, which no template writes. The tabs show whether a template strips.
_SLOT = "\t\ue000{}{}\ue001\t"
_SLOTS = re.compile("(\t?)\ue000([0-9]+)([ct])\ue001(\t?)")
_REMEDY = "set data.template to another template (chatml, llama2, alpaca, dolly, none)"
# Where a template may expect a thought: in a key of its own, or in the content between tags.
_STYLES = ("reasoning_content", "thinking", "tags")

# Templates that write the current date get one of their own (Llama 3.1's), so that a run resumed on
# another day, and all ranks around midnight, train on the same tokens.
DATE = datetime(2024, 7, 26)

Signature = tuple[tuple[str, bool], ...]
"""Each message's role, and whether it is an answer with a thought."""


class Slot(NamedTuple):
    """The place of a message's text, or of its thought, in what a template writes."""

    message: int
    thought: bool
    strip_left: bool
    strip_right: bool


@dataclass(frozen=True)
class _Answer:
    """An answer: text in front of it, its thought, what ends the thought, and whether it is learnt.

    verbatim: the template knows no thoughts, so the answer is written as it is, tags included.
    """

    index: int
    opened: str
    thought: bool
    close: str
    trained: bool
    verbatim: bool


_Part = Span | Slot | _Answer


class ChatTemplate:
    """Renders conversations with a tokenizer's chat_template; caches each sequence of roles."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", special: SpecialTokens) -> None:
        if not tokenizer.chat_template:
            raise UserError(f"the tokenizer has no chat_template: {_REMEDY}")
        self._tokenizer = tokenizer
        self._special = special
        added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
        ordinary = tokenizer.init_kwargs.get(ORDINARY, ())
        self._controls = tuple(completion_controls(added, ordinary).values())
        self._rendered: dict[Signature, tuple[list[_Part], str]] = {}

    def spans(self, messages: tuple[Message, ...]) -> list[Span]:
        """The spans of a conversation that ends with an assistant turn.

        An assistant turn ends with EOS if the template writes it there. EOS directly follows the
        completion: white space that the template puts between them is left out. If the template
        ends turns with another token (`<|eot_id|>`, `<end_of_turn>`), that token is the supervised
        end, and EOS follows it only at the end of the conversation. If the template ends turns
        with no token, EOS is added. Text after the last end is left out.

        Raises UserError if the template fails or does not contain every message exactly once.
        """
        split = [split_thought(m.content) if m.role == "assistant" else None for m in messages]
        parts, _ = self._parts(signature_of(messages))
        spans: list[Span] = []
        trained = True
        for part in parts:
            if isinstance(part, Span):
                spans.append(part._replace(trained=trained) if part.kind == "end" else part)
            elif isinstance(part, Slot):
                text = messages[part.message].full_content
                text = text.lstrip() if part.strip_left else text
                spans.append(Span(text.rstrip() if part.strip_right else text, "content"))
            else:
                trained = part.trained and messages[part.index].trained
                content, thought = messages[part.index].content, split[part.index]
                if thought is None or part.verbatim:
                    spans += self._answer(part.opened, "", "", content, trained)
                elif part.thought:
                    spans += self._answer(part.opened, thought[0], part.close, thought[1], trained)
                else:
                    spans += self._answer(part.opened, "", "", thought[1], trained)
        return spans

    def as_dicts(self, messages: tuple[Message, ...]) -> list[dict[str, str]]:
        """The messages as this template takes them, with thoughts where it expects them."""
        _, style = self._parts(signature_of(messages))
        dicts = []
        for message in messages:
            entry = {"role": message.role, "content": message.full_content}
            thought = split_thought(message.content) if message.role == "assistant" else None
            if thought is not None and style != "tags":
                entry |= {"content": thought[1], style: thought[0]}
            dicts.append(entry)
        return dicts

    def opened(self, messages: tuple[Message, ...]) -> str:
        """What the model has to write in front of the last answer, apart from white space."""
        parts, _ = self._parts(signature_of(messages))
        last = next(part for part in reversed(parts) if isinstance(part, _Answer))
        return last.opened if last.opened.strip() else ""

    def text(
        self, turns: list[dict[str, str]], *, today: bool = False, prompt: bool = False
    ) -> str:
        """What `apply_chat_template` gives, with the fixed date or today's.

        prompt: with `add_generation_prompt`.
        """
        date = {} if today else {"strftime_now": DATE.strftime}
        options: dict[str, Any] = {"add_generation_prompt": True} if prompt else {}
        return str(self._tokenizer.apply_chat_template(turns, tokenize=False, **date, **options))

    def context_only(self, messages: tuple[Message, ...]) -> int:
        """Answers that are not learnt, because a server's prompt for them would be another one."""
        parts, _ = self._parts(signature_of(messages))
        return sum(
            messages[part.index].trained and not part.trained
            for part in parts
            if isinstance(part, _Answer)
        )

    def _answer(
        self, opened: str, thought: str, close: str, answer: str, trained: bool
    ) -> list[Span]:
        """An answer as one completion; control tokens that the template writes stay apart."""
        if not any(control in opened + close for control in self._controls):
            return [Span(opened + thought + close + answer, "completion", trained)]
        spans = [Span(opened, "text", trained), Span(thought, "completion", trained)]
        spans += [Span(close, "text", trained), Span(answer, "completion", trained)]
        return [span for span in spans if span.text]

    def _parts(self, signature: Signature) -> tuple[list[_Part], str]:
        if signature not in self._rendered:
            self._rendered[signature] = self._render(signature)
        return self._rendered[signature]

    def _render(self, signature: Signature) -> tuple[list[_Part], str]:
        style, whole = self._whole(signature)
        prompt = self._write(signature[:-1], style, prompt=True)
        texts, slots = _cut(whole)
        asked, asked_slots = _cut(prompt)
        tail = asked[-1]
        if len(signature) == 3 and len(slots) == 2 == len(asked_slots):
            # Mistral's has the system message only where the question comes last. One question can
            # be trained on as it is sent; of several, the earlier ones would lack it.
            texts = [*asked[:-1], *texts[1:]]
            slots = [*asked_slots, slots[-1]]
        self._require_all_turns(signature, slots)
        last_end = self._token_at_start(texts[-1])
        parts: list[_Part] = []
        before = texts[0]
        thought: Slot | None = None
        between = ""
        for place, (slot, following) in enumerate(zip(slots, texts[1:], strict=True)):
            if slot.thought:
                thought, between = slot, following
                continue
            role, has_thought = signature[slot.message]
            if role != "assistant":
                parts += [*_template(before), slot]
                before = following
                continue
            last = place == len(slots) - 1
            shown = Opening(before, between if thought else None, has_thought, style == "tags")
            start = opening(shown, tail, last)
            if start is None:
                raise UserError(
                    "the tokenizer's chat_template leaves out the thought of the last answer"
                    f" (<think>...</think>): {_REMEDY}"
                )
            parts += _template(start.prompt)
            parts.append(
                _Answer(
                    slot.message,
                    start.opened,
                    start.thought,
                    start.close,
                    start.trained,
                    start.verbatim,
                )
            )
            ends, before = self._ends(following, last_end, last)
            parts += ends
            thought, between = None, ""
        return parts, style

    def _whole(self, signature: Signature) -> tuple[str, str]:
        """The style in which the template shows the last thought, and the whole conversation."""
        thoughts = [index for index, (_, thought) in enumerate(signature) if thought]
        if not thoughts:
            return "tags", self._write(signature, "tags")
        for style in _STYLES:
            whole = self._write(signature, style)
            if any(slot.thought and slot.message == thoughts[-1] for slot in _cut(whole)[1]):
                return style, whole
        return style, whole

    def _ends(self, following: str, last_end: str | None, last: bool) -> tuple[list[_Part], str]:
        """What ends an answer, and the text after it.

        An added token that ends this turn and not the last one (gpt-oss's `<|end|>`) is context:
        a server would not stop there.
        """
        eos = self._special.eos
        token = self._token_at_start(following)
        if token is not None and token in (eos, last_end):
            ends: list[_Part] = [Span(token, "end")]
            if last and token != eos:
                ends.append(Span(eos, "end"))
            return ends, following.lstrip().removeprefix(token)
        if token is not None and token != self._special.bos and not last:
            return [], following
        return [Span(eos, "end")], following

    def _write(self, signature: Signature, style: str, *, prompt: bool = False) -> str:
        messages = []
        for index, (role, thought) in enumerate(signature):
            content = _SLOT.format(index, "c")
            message = {"role": role, "content": content}
            if thought:
                slot = _SLOT.format(index, "t")
                tagged = {"content": f"{OPEN}{slot}{CLOSE}{GAP}{content}"}
                message |= tagged if style == "tags" else {style: slot}
            messages.append(message)
        try:
            return self.text(messages, prompt=prompt)
        except Exception as error:  # the template is foreign code: it may raise anything
            if missing := missing_package(error):
                raise missing from error
            text = " ".join(str(error).split())
            roles = ", ".join(role for role, _ in signature)
            raise UserError(
                f"the tokenizer's chat_template rejects the roles {roles} ({text}): {_REMEDY}"
            ) from error

    def _require_all_turns(self, signature: Signature, slots: list[Slot]) -> None:
        order = [slot.message for slot in slots if not slot.thought]
        if order == list(range(len(signature))):
            return
        if signature[0][0] == "system" and order == list(range(1, len(signature))):
            raise UserError(
                "the tokenizer's chat_template drops the system message (Mistral's, Phi-3's: where"
                f" an answer follows): put it in front of the first question, or {_REMEDY}"
            )
        roles = ", ".join(role for role, _ in signature)
        raise UserError(
            f"the tokenizer's chat_template does not contain each of the turns {roles} exactly"
            f" once and in order: {_REMEDY}"
        )

    def _token_at_start(self, text: str) -> str | None:
        added = self._special.added
        return next((token for token in added if text.lstrip().startswith(token)), None)


def signature_of(messages: tuple[Message, ...]) -> Signature:
    """What a template's text around the messages depends on."""
    return tuple(
        (m.role, m.role == "assistant" and split_thought(m.content) is not None) for m in messages
    )


def _cut(rendered: str) -> tuple[list[str], list[Slot]]:
    """The texts around the slots, one more than slots, and the slots."""
    # text, tab, index, c or t, tab, text, ..., text
    fields = _SLOTS.split(rendered)
    slots = [
        Slot(int(index), kind == "t", not left, not right)
        for left, index, kind, right in zip(
            fields[1::5], fields[2::5], fields[3::5], fields[4::5], strict=True
        )
    ]
    return fields[::5], slots


def _template(text: str) -> list[_Part]:
    return [Span(text, "template")] if text else []
