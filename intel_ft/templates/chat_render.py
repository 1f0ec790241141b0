"""A chat template rendered with placeholders in place of the words of a conversation.

A chat template is a program that returns one string. Here it receives a placeholder (a slot)
instead of every message and every thought, so that the text it writes around them can be separated
from them; nothing has to be searched for, and it can neither branch on the words nor be steered by
them. Tools and tool calls are given as they are, with a slot for each called function's name, which
shows whether the call is written.
"""

import itertools
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2

from intel_ft.errors import UserError, missing_package
from intel_ft.templates.chat_messages import (
    SLOTS,
    Form,
    Signature,
    forms_of,
    json_text,
    placeholders,
)
from intel_ft.templates.thoughts import CLOSE, GAP, OPEN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

REMEDY = "set data.template to another template (chatml, llama2, alpaca, dolly, none)"

# Templates that write the current date get one of their own (Llama 3.1's), so that a run resumed on
# another day, and all ranks around midnight, train on the same tokens.
DATE = datetime(2024, 7, 26)

_RECENT = 100  # texts: those of one conversation are asked for several times
_VERBATIM = re.compile(
    f'{OPEN}\t?\ue000"([0-9]+)t\ue001\t?{CLOSE}(?:{GAP}(?:\t?\ue000"\\1c\ue001(\t?))?)?'
)
_MARK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


class TemplateProblem(UserError):
    """A conversation that the tokenizer's chat_template does not write."""


class MarkedText(NamedTuple):
    """A part of what a template writes; generated: it marks it so; message: the first in it."""

    text: str
    generated: bool
    message: int | None


class TemplateRenderer:
    """Renders sequences of roles with a tokenizer's chat_template."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast") -> None:
        if not tokenizer.chat_template:
            raise UserError(f"the tokenizer has no chat_template: {REMEDY}")
        self._tokenizer = tokenizer
        self._rendered = lru_cache(_RECENT)(self._render)
        self._marks: dict[bool, bool] = {}

    def has_marks(self, tools: str) -> bool:
        """Whether the template marks what the assistant generates (`{% generation %}`)."""
        if bool(tools) not in self._marks:  # a tokenizer may have a template for tools
            self._marks[bool(tools)] = bool(_MARK.search(self._template(tools)))
        return self._marks[bool(tools)]

    def form_of(self, signature: Signature) -> Form:
        """How the template wants this conversation. Raises TemplateProblem if it drops parts."""
        thoughts = [index for index, shape in enumerate(signature.shapes) if shape.thought]
        problem: TemplateProblem | None = None
        without_thought = False
        for form in forms_of(signature):
            try:
                written = self._write(signature, form)
                _require_all(signature, self._as_asked(signature, form, written))
            except TemplateProblem as error:
                problem = problem or error
                continue
            if form.thought == "tags" or self._shows_thought(signature, form, thoughts[-1]):
                return form  # tags are the last way to ask
            without_thought = True
        if without_thought and any(shape.thought and shape.calls for shape in signature.shapes):
            raise TemplateProblem(
                "the tokenizer's chat_template leaves out the reasoning (<think>...</think>) of an"
                " answer that calls tools: remove the reasoning, or use a model whose chat_template"
                " writes it"
            )
        assert problem is not None
        raise problem

    def render(self, signature: Signature, form: Form, *, prompt: bool = False) -> str:
        """What the template writes, with slots for the words.

        prompt: with `add_generation_prompt`.
        """
        written = _with_names(signature, self._write(signature, form, prompt=prompt))
        return _with_verbatim(signature, written) if form.thought == "tags" else written

    def render_marked(self, signature: Signature, form: Form) -> list[MarkedText]:
        """What the template writes, cut where its marks of what is generated begin and end."""
        from transformers.utils.chat_template_utils import render_jinja_template

        turns = placeholders(signature, form)
        with _rejections(turns):
            (written,), (marks,) = render_jinja_template(
                conversations=[turns],
                tools=_tools(signature.tools),
                chat_template=self._template(signature.tools),
                return_assistant_tokens_mask=True,
                **{**self._tokenizer.special_tokens_map, "strftime_now": DATE.strftime},
            )
        edges = [0, *itertools.chain.from_iterable(marks), len(written)]
        found = []
        for place, (start, end) in enumerate(itertools.pairwise(edges)):
            piece = written[start:end]
            slot = SLOTS.search(piece)
            text = _with_names(signature, piece)
            text = _with_verbatim(signature, text) if form.thought == "tags" else text
            found.append(MarkedText(text, place % 2 == 1, int(slot[3]) if slot else None))
        return found

    def text(
        self,
        turns: list[dict[str, Any]],
        tools: str = "",
        *,
        today: bool = False,
        prompt: bool = False,
    ) -> str:
        """What `apply_chat_template` gives, with the fixed date or today's.

        prompt: with `add_generation_prompt`. Raises TemplateProblem if the template rejects them.
        """
        options: dict[str, Any] = {} if today else {"strftime_now": DATE.strftime}
        if prompt:
            options["add_generation_prompt"] = True
        if tools:
            options["tools"] = _tools(tools)
        with _rejections(turns):
            return str(self._tokenizer.apply_chat_template(turns, tokenize=False, **options))

    def _shows_thought(self, signature: Signature, form: Form, answer: int) -> bool:
        """Whether the template writes the thought of this answer where it is the last one."""
        until = Signature(signature.tools, signature.shapes[: answer + 1])
        slots = SLOTS.finditer(self._write(until, form))
        return any(slot[4] == "t" and int(slot[3]) == answer for slot in slots)

    def _as_asked(self, signature: Signature, form: Form, written: str) -> str:
        """What a server sends for the last answer, and the slots of that answer."""
        last = len(signature.shapes) - 1
        if signature.shapes[last].role != "assistant":
            return written
        asked = Signature(signature.tools, signature.shapes[:last])
        try:
            prompt = self._write(asked, form, prompt=True)
        except TemplateProblem:
            return written
        own = (slot[0] for slot in SLOTS.finditer(written) if int(slot[3]) == last)
        return prompt + "".join(own)

    def _template(self, tools: str) -> str:
        return str(self._tokenizer.get_chat_template(None, _tools(tools)))

    def _write(self, signature: Signature, form: Form, *, prompt: bool = False) -> str:
        return self._rendered(signature, form, prompt)

    def _render(self, signature: Signature, form: Form, prompt: bool) -> str:
        return self.text(placeholders(signature, form), signature.tools, prompt=prompt)


@contextmanager
def _rejections(turns: list[dict[str, Any]]) -> Iterator[None]:
    """Raises TemplateProblem for whatever a template raises: it is foreign code."""
    try:
        yield
    except Exception as error:
        if missing := missing_package(error):
            raise missing from error
        text = " ".join(str(error).split())
        if isinstance(error, jinja2.TemplateSyntaxError):
            raise TemplateProblem(
                f"the tokenizer's chat_template is not a valid template ({text}): {REMEDY}"
            ) from error
        roles = ", ".join(turn["role"] for turn in turns)
        raise TemplateProblem(
            f"the tokenizer's chat_template rejects the roles {roles} ({text}): {REMEDY}"
        ) from error


def _require_all(signature: Signature, written: str) -> None:
    """Raise TemplateProblem unless all words and calls are written, the words once and in order."""
    shapes = signature.shapes
    slots = [(int(slot[3]), slot[4], slot[5]) for slot in SLOTS.finditer(written)]
    order = [message for message, kind, _ in slots if kind == "c"]
    expected = [index for index, shape in enumerate(shapes) if not shape.empty]
    names = {(message, number) for message, kind, number in slots if kind == "n"}
    for index, shape in enumerate(shapes):
        if shape.calls and any(
            (index, str(number)) not in names for number in range(len(json.loads(shape.calls)))
        ):
            raise TemplateProblem(
                "the tokenizer's chat_template leaves out tool calls: it supports no tools, or"
                " only one call per turn: use a model whose chat_template writes them"
            )
    if shapes[0].role == "system" and expected[:1] == [0]:
        if 0 not in order:
            raise TemplateProblem(
                "the tokenizer's chat_template drops the system message: put it in front of the"
                f" first question, or {REMEDY}"
            )
        if order.count(0) == 1:
            order.remove(0)  # Mistral's stands in front of the last question
            expected.remove(0)
    if order == expected:
        return
    dropped = [shapes[index] for index in expected if index not in order]
    if dropped and all(shape.calls for shape in dropped):
        raise TemplateProblem(
            "the tokenizer's chat_template leaves out the text of an answer that calls tools:"
            " remove them, or use a model whose chat_template writes them"
        )
    roles = ", ".join(shape.role for shape in shapes)
    raise TemplateProblem(
        f"the tokenizer's chat_template does not contain each of the turns {roles} exactly once"
        f" and in order: {REMEDY}"
    )


def _with_names(signature: Signature, written: str) -> str:
    """`written` with the names of called functions in their slots."""

    def name_of(slot: re.Match[str]) -> str:
        if slot[4] != "n":
            return slot[0]
        calls = json.loads(signature.shapes[int(slot[3])].calls)
        name = str(calls[int(slot[5])]["function"]["name"])
        return json_text(name) if slot[2] else name

    return (
        SLOTS.sub(name_of, written) if any(shape.calls for shape in signature.shapes) else written
    )


def _with_verbatim(signature: Signature, written: str) -> str:
    """`written` with one slot for an answer that stands there as it is, thought included."""

    def verbatim(found: re.Match[str]) -> str:
        whole = found[2] is not None
        if not whole and not signature.shapes[int(found[1])].empty:
            return found[0]
        right = found[2] if whole else "\t" * found[0].endswith(GAP)
        return f'\t\ue000"{found[1]}v\ue001{right}'

    return _VERBATIM.sub(verbatim, written)


def _tools(tools: str) -> list[Any] | None:
    return json.loads(tools) if tools else None
