"""The tokenizer's own chat_template: conversations as spans, with what is trained on.

Each answer has two texts: the prompt that a server sends for it (`add_generation_prompt`), and the
conversation up to the answer. What the second has behind the first is what the model has to write:
thought, words, tool calls, end of turn, and what the template puts in front of them (Qwen3's empty
thought, the name of a channel). An earlier answer is trained on where the conversation goes on from
exactly these texts; a template that then drops the thought makes it context (`separate` makes
examples of such answers). A template that marks what the assistant generates decides itself.

Both texts have placeholders for the words (data.chat_render), and are rendered once for each
sequence of roles and tools.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from intel_ft.templates.answer_start import Start, answer_start, without_next_prompt
from intel_ft.templates.chat_messages import (
    SLOTS,
    Form,
    Shape,
    Signature,
    json_text,
    messages_as_given,
    signature_of,
    words_of,
)
from intel_ft.templates.chat_render import REMEDY, TemplateProblem, TemplateRenderer
from intel_ft.templates.formats import Conversation, Message
from intel_ft.templates.spans import Kind, Span, SpecialTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_REMEMBERED = 2000  # sequences of roles and tools; tool calls differ from row to row
_NO_THOUGHT = (
    "the tokenizer's chat_template leaves out the reasoning of the last answer"
    f" (<think>...</think>): {REMEDY}"
)
_MAY_ADD = re.compile(r"[<\[]")
_CALL_ENDS = ("<|call|>", "<|eom_id|>")  # where servers stop, to run the tool


class _Slot(NamedTuple):
    """The place of a message's words, thought or both in what a template writes."""

    message: int
    kind: str
    strip_left: bool
    strip_right: bool
    escaped: bool


class _Part(NamedTuple):
    """A piece of an example: a text that the template writes, or a slot.

    answer: the message that it belongs to if it is part of an answer that is trained on.
    """

    text: str
    slot: _Slot | None
    kind: Kind
    answer: int | None


class _Answer(NamedTuple):
    """What a server sends for an answer, what the model writes, and the token that ends it.

    opened: the text that the model writes in front of its words.
    """

    message: int
    prompt: str
    body: str
    end: str
    opened: str


@dataclass(frozen=True)
class _Written:
    """A sequence of roles as the template writes it.

    learnt: the messages whose answers are trained on. opened: what the model has to write in front
    of the last answer. adds_eos: the template has none behind it.
    """

    form: Form
    parts: tuple[_Part, ...]
    learnt: frozenset[int]
    opened: str
    adds_eos: bool


class ChatTemplate:
    """Renders conversations with a tokenizer's chat_template; caches each sequence of roles."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", special: SpecialTokens) -> None:
        self._renderer = TemplateRenderer(tokenizer)
        self._special = special
        self._written: dict[Signature, _Written] = {}

    def spans(self, conversation: Conversation) -> list[Span]:
        """The spans of a conversation; text after its last trained part is left out.

        An answer is what the template makes of it, and ends as the template ends it. EOS follows
        the last answer if the template has none there, so that the model learns to stop.

        Raises TemplateProblem if the template fails or leaves out a message.
        """
        messages = conversation.messages
        spans: list[Span] = []
        follows = False  # a trained turn that is no answer: its end is trained on, too
        written = self._of(conversation)
        for part in written.parts:
            if part.slot is None:
                text = part.text
                if follows and (token := self._token_at(text)):
                    spans.append(Span(token, "end"))
                    text = text.removeprefix(token)
                follows = False
                if text:
                    trained = part.answer is None or (
                        part.answer in written.learnt and messages[part.answer].in_loss
                    )
                    spans.append(Span(text, part.kind, trained))
                continue
            message = messages[part.slot.message]
            text = _words(message, part.slot)
            # An answer in the context is encoded with the text around it, as in a server's prompt,
            # unless it may contain an added token, which only a completion's text may become.
            if message.role == "assistant" and (part.answer is not None or _MAY_ADD.search(text)):
                trained = part.answer in written.learnt and message.in_loss
                spans.append(Span(text, "completion", trained))
            elif message.in_loss and message.role != "assistant":
                spans.append(Span(text, "completion"))
                follows = True
            else:
                spans.append(Span(text, "content"))
        while len(spans) > 1 and spans[-1].kind in ("template", "content"):
            spans.pop()
        return spans

    def learnt(self, conversation: Conversation) -> frozenset[int]:
        """The answers that can be trained on: their prompts are a server's."""
        return self._of(conversation).learnt

    def separate(self, conversation: Conversation) -> Iterator[Conversation]:
        """The conversation, cut where needed, so that each answer is trained on in one of them."""
        left = {index for index, one in enumerate(conversation.messages) if one.in_loss}
        last = len(conversation.messages)
        while left:
            shorter = last > (last := max(left) + 1)
            part = conversation
            if shorter:
                part = replace(conversation, messages=conversation.messages[:last])
            others = {index for index in left if part.messages[index].role != "assistant"}
            here = left & (self.learnt(part) | others | {last - 1})
            if not shorter and here == left:
                yield conversation
                return
            marked = [
                replace(one, trained=False) if one.in_loss and index not in here else one
                for index, one in enumerate(part.messages)
            ]
            yield replace(part, messages=tuple(marked))
            left -= here

    def opened(self, conversation: Conversation) -> str:
        """What the model has to write in front of the last answer, apart from white space."""
        opened = self._of(conversation).opened
        return opened if opened.strip() else ""

    def adds_eos(self, conversation: Conversation) -> bool:
        """Whether EOS follows the last answer here, and not in the template."""
        return self._of(conversation).adds_eos

    def has_marks(self, conversation: Conversation) -> bool:
        """Whether the template itself marks what is generated."""
        return self._renderer.has_marks(conversation.tools)

    def whole_text(self, conversation: Conversation, *, today: bool = False) -> str:
        """What `apply_chat_template` gives of the conversation."""
        turns = messages_as_given(conversation, self._of(conversation).form)
        return self._renderer.text(turns, conversation.tools, today=today)

    def prompt_text(self, conversation: Conversation, answer: int) -> str | None:
        """What `apply_chat_template` gives of the messages in front of this answer, as a prompt.

        None if it rejects them: then no server can ask for this answer.
        """
        turns = messages_as_given(conversation, self._of(conversation).form)
        with suppress(TemplateProblem):
            return self._renderer.text(turns[:answer], conversation.tools, prompt=True)
        return None

    def _of(self, conversation: Conversation) -> _Written:
        signature = signature_of(conversation)
        if signature not in self._written:
            if len(self._written) >= _REMEMBERED:
                self._written.clear()
            self._written[signature] = self._write(signature)
        return self._written[signature]

    def _write(self, signature: Signature) -> _Written:
        form = self._renderer.form_of(signature)
        if self._renderer.has_marks(signature.tools):
            return self._as_marked(signature, form)
        shapes = signature.shapes
        answers = [
            self._answer(Signature(signature.tools, shapes[: index + 1]), form, index)
            for index, shape in enumerate(shapes)
            if shape.role == "assistant"
        ]
        opened, ends = "", [""]
        if shapes[-1].role == "assistant":
            last = answers.pop()
            if last is None:
                raise TemplateProblem(_NO_THOUGHT)
            before = last.prompt
            ends = self._ends(last, has_calls=bool(shapes[-1].calls))
            opened = last.opened
        else:
            before, last = self._renderer.render(signature, form), None
        parts: list[_Part] = []
        learnt = set()
        at = 0
        for answer in filter(None, answers):
            full = answer.prompt + answer.body
            if not before.startswith(full):
                continue  # the conversation goes on from another text: context
            learnt.add(answer.message)
            parts += self._parts(before[at : len(answer.prompt)], None)
            parts += self._parts(answer.body, answer.message)
            at = len(full)
            if answer.end and before.startswith(answer.end, at):
                parts.append(_Part(answer.end, None, "end", answer.message))
                at += len(answer.end)
        parts += self._parts(before[at:], None)
        if last is not None:
            learnt.add(last.message)
            parts += self._parts(last.body, last.message)
            parts += [_Part(end, None, "end", last.message) for end in ends]
        adds_eos = last is not None and len(ends) > bool(last.end)
        return _Written(form, tuple(parts), frozenset(learnt), opened, adds_eos)

    def _as_marked(self, signature: Signature, form: Form) -> _Written:
        """As the template's own marks say."""
        pieces = self._renderer.render_marked(signature, form)
        answers = [index for index, one in enumerate(signature.shapes) if one.role == "assistant"]
        parts: list[_Part] = []
        learnt: list[int] = []
        seen = -1  # the message that the text so far has reached
        for text, generated, message in pieces:
            seen = max([seen, *(int(slot[3]) for slot in SLOTS.finditer(text))])
            if not generated:
                parts += self._parts(text, None)
                continue
            if message is None and seen not in answers:  # an answer without words begins
                seen = next((one for one in answers if one > seen), answers[-1])
            answer = seen if message is None else message
            learnt.append(answer)
            parts += self._parts(text, answer)
        adds_eos = signature.shapes[-1].role == "assistant"
        if answers and adds_eos:
            while parts and parts[-1].answer is None:
                parts.pop()
            if not learnt or answers[-1] != learnt[-1]:
                raise TemplateProblem(
                    "the tokenizer's chat_template marks no part of the last answer as generated:"
                    f" {REMEDY}"
                )
            if answers[-1] in _without_thoughts(signature, parts):
                raise TemplateProblem(_NO_THOUGHT)
            end = parts[-1].text.rstrip() if parts[-1].slot is None else ""
            adds_eos = not any(end.endswith(token) for token in self._special.added)
            if adds_eos:
                parts.append(_Part(self._special.eos, None, "end", answers[-1]))
        # `separate` makes examples of answers whose thoughts are dropped here.
        shown = frozenset(learnt) - _without_thoughts(signature, parts)
        return _Written(form, tuple(parts), shown, "", adds_eos)

    def _answer(self, signature: Signature, form: Form, index: int) -> _Answer | None:
        """The answer that ends this conversation; None if the template leaves out its thought."""
        whole = self._renderer.render(signature, form)
        asked = Signature(signature.tools, signature.shapes[:-1])
        try:
            prompt: str | None = self._renderer.render(asked, form, prompt=True)
        except TemplateProblem:  # nothing is asked, or the template wants a question last
            prompt = None
        start = answer_start(whole, prompt, index, signature.shapes[-1].thought)
        if start is None:
            return None
        if prompt is not None and prompt == self._renderer.render(asked, form):
            start = start._replace(body=self._unasked(signature, form, start.body, prompt))
        return self._with_end(index, start, signature.shapes[-1].after)

    def _unasked(self, signature: Signature, form: Form, body: str, asked: str) -> str:
        """The last answer's body, without a prompt that stands there whether asked for or not."""
        last = signature.shapes[-1]
        longer = Signature(signature.tools, (*signature.shapes, Shape("user")))
        followed = ""
        with suppress(TemplateProblem):  # no question may follow here
            text = self._renderer.render(longer, form)
            slots = (slot for slot in SLOTS.finditer(text) if int(slot[3]) == len(signature.shapes))
            followed = text[: slot.start()] if (slot := next(slots, None)) else ""
        words_last = not last.calls and not last.empty
        return without_next_prompt(
            body, asked, followed, self._special.added, words_last=words_last
        )

    def _with_end(self, index: int, start: Start, after: str) -> _Answer:
        """The answer, cut in front of the token that ends it; white space behind it is left out.

        after: the line breaks behind the answer's words.
        """
        body = start.body.rstrip()
        if body.endswith("\ue001"):
            for own in ("\t", after):  # the slot's, and the answer's
                body += own * start.body.startswith(own, len(body))
            return _Answer(index, start.prompt, body, "", start.opened)
        bos = self._special.bos if self._special.bos != self._special.eos else None
        ends = (token for token in self._special.added if token != bos and body.endswith(token))
        end = next(ends, "")
        body = body.removesuffix(end) if end else body
        return _Answer(index, start.prompt, body, end, start.opened)

    def _ends(self, answer: _Answer, *, has_calls: bool) -> list[str]:
        """The tokens that end the last answer."""
        ends = [answer.end] if answer.end else []
        if answer.end != self._special.eos and not (has_calls and answer.end in _CALL_ENDS):
            ends.append(self._special.eos)
        return ends

    def _parts(self, text: str, answer: int | None) -> list[_Part]:
        kind: Kind = "template" if answer is None else "written"
        parts: list[_Part] = []
        at = 0
        for found in SLOTS.finditer(text):
            if found.start() > at:
                parts.append(_Part(text[at : found.start()], None, kind, answer))
            slot = _Slot(int(found[3]), found[4], not found[1], not found[6], bool(found[2]))
            parts.append(_Part("", slot, kind, answer))
            at = found.end()
        if at < len(text):
            parts.append(_Part(text[at:], None, kind, answer))
        return parts

    def _token_at(self, text: str) -> str | None:
        return next((token for token in self._special.added if text.startswith(token)), None)


def _without_thoughts(signature: Signature, parts: list[_Part]) -> frozenset[int]:
    """The answers that begin with a thought that no part has."""
    shown = {part.answer for part in parts if part.slot and part.slot.kind in ("t", "v")}
    return frozenset(
        index
        for index, shape in enumerate(signature.shapes)
        if shape.thought and index not in shown
    )


def _words(message: Message, slot: _Slot) -> str:
    """The words of a slot, as the template writes them."""
    thought, words = words_of(message)
    if slot.kind == "t":
        text = thought or ""
    elif slot.kind == "v":  # line breaks behind the words stand behind the slot
        text = message.content.rstrip("\n") if words else message.content
    else:
        text = words.strip("\n")
    text = text.lstrip() if slot.strip_left else text
    text = text.rstrip() if slot.strip_right else text
    return json_text(text) if slot.escaped else text
