"""Compare what intel_ft trains on with `apply_chat_template`, called here independently of it.

A row is what data has: `messages` as OpenAI writes them, and `tools`. Templates expect reasoning,
arguments of calls and answers without words in different keys; so every such form is tried, and one
of them must give the trained ids, with every trained answer's words, reasoning and calls in it.
Used by chat_template_table.py.
"""

import itertools
import json
from collections.abc import Iterator
from typing import Any, NamedTuple
from unicodedata import normalize

import numpy as np
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from intel_ft.conversations.tools import tools_text
from intel_ft.conversations.turns import TurnRules, read_turns
from intel_ft.errors import UserError
from intel_ft.templates.chat_render import DATE
from intel_ft.templates.chat_template import ChatTemplate
from intel_ft.templates.encode import SpanEncoder
from intel_ft.templates.formats import Conversation
from intel_ft.templates.spans import special_tokens_of
from intel_ft.templates.template_check import template_notes

Turn = dict[str, Any]


class Row(NamedTuple):
    """A row of chat data."""

    messages: list[Turn]
    tools: list[Turn] | None = None


_PARAMETERS = {
    "type": "object",
    "properties": {
        "a": {"type": "number", "description": "One."},
        "b": {"type": "string", "description": "Other."},
    },
    "required": ["a", "b"],
}
TOOLS: list[Turn] = [
    {
        "type": "function",
        "function": {"name": "add", "description": "Adds.", "parameters": _PARAMETERS},
    }
]


def system(text: str) -> Turn:
    """A system message."""
    return {"role": "system", "content": text}


def user(text: str = "What is 2+2?") -> Turn:
    """A question."""
    return {"role": "user", "content": text}


def says(text: str = "It is 4.", thought: str | None = None) -> Turn:
    """An answer, with its reasoning."""
    turn: Turn = {"role": "assistant", "content": text}
    return turn if thought is None else {**turn, "reasoning_content": thought}


def calls(*arguments: dict[str, Any], text: str = "", thought: str | None = None) -> Turn:
    """An answer that calls a tool once for each set of arguments."""
    made = [
        {
            "id": f"call0000{number}",
            "type": "function",
            "function": {"name": "add", "arguments": one},
        }
        for number, one in enumerate(arguments)
    ]
    return {**says(text, thought), "tool_calls": made}


def result(text: str = '{"sum": 4}', number: int = 0) -> Turn:
    """A tool's result."""
    return {"role": "tool", "content": text, "name": "add", "tool_call_id": f"call0000{number}"}


_ONE: dict[str, Any] = {"a": 2, "b": 'two "é"\n'}
_TWO: dict[str, Any] = {"a": [1, {"c": None}], "b": "x"}
_NOTHING = {**says(""), "weight": 0}
SHAPES = {
    "one answer": Row([user(), says()]),
    "several turns": Row([user(), says(), user("And 3+3?"), says("It is 6."), user(), says()]),
    "system": Row([system("Be brief."), user(), says(), user("And 3+3?"), says("It is 6.")]),
    "reasoning": Row([user(), says(thought="easy")]),
    "reasoning, several turns": Row(
        [user(), says(thought="easy"), user("And 3+3?"), says("It is 6.", "add them")]
    ),
    "a tool": Row([system("Be brief."), user(), calls(_ONE), result(), says()], TOOLS),
    "parallel calls": Row([user(), calls(_ONE, _TWO), result(), result("no", 1), says()], TOOLS),
    "two tools in turn": Row(
        [user(), calls(_ONE), result(), calls(_TWO), result("5"), says()], TOOLS
    ),
    "a tool with reasoning": Row(
        [user(), calls(_ONE, thought="add them"), result(), says(thought="easy")], TOOLS
    ),
    "no user": Row([says("Hello."), user("And 3+3?"), says("It is 6.")]),
    "user last": Row([user(), says(), user("Thanks!")]),
    "an empty answer": Row([user(), _NOTHING, user("And 3+3?"), says("It is 6.")]),
    "white space": Row([user(" a \n"), says("  b \n\n"), user("\n\nc"), says(" d ")]),
}

_ALPHABET = 'ab 1\n\t\r"{}é.東🙂' + "\u0301"  # an accent: some tokenizers compose it
_WORDS = st.text(st.sampled_from(_ALPHABET), min_size=1, max_size=14).map(lambda s: f"x{s}")
_ARGUMENTS = st.dictionaries(st.sampled_from("abc"), st.one_of(_WORDS, st.integers(0, 9)))


@st.composite
def rows(draw: st.DrawFn) -> Row:
    """Random conversations: system message, turns, tool calls, parallel ones, reasoning."""
    thought = st.one_of(st.none(), _WORDS.map(str.strip)) if draw(st.booleans()) else st.none()
    tools = draw(st.booleans())
    turns = [system(draw(_WORDS))] if draw(st.booleans()) else []
    for number in range(draw(st.integers(1, 3))):
        turns.append(user(f"{number}{draw(_WORDS)}"))
        for _ in range(draw(st.integers(0, 2)) if tools else 0):
            given = draw(st.lists(_ARGUMENTS, min_size=1, max_size=2))
            turns.append(calls(*given, thought=draw(thought)))
            turns += [result(draw(_WORDS), place) for place in range(len(given))]
        turns.append(says(draw(_WORDS), draw(thought)))
    return Row(turns, TOOLS if tools else None)


class Outcome(NamedTuple):
    """What became of a row.

    refused: why; examples: how many the row gives; unlike: what differs from the template;
    printed: the note of `validate` about that, empty where it has none; served: how many examples
    have the server's prompt, while the template writes the whole conversation in another way;
    spanned: how many have equal texts, but a token of the template's text spans the end of a
    prompt.
    """

    refused: str = ""
    examples: int = 0
    unlike: str = ""
    served: int = 0
    spanned: int = 0
    printed: str = ""


def check(tokenizer: Any, row: Row) -> Outcome:
    """Compare the examples of a row with `apply_chat_template`."""
    special = special_tokens_of(tokenizer)
    template = ChatTemplate(tokenizer, special)
    try:
        parts = list(template.separate(_conversation(row)))
        spans = [template.spans(part) for part in parts]
    except UserError as error:
        return Outcome(refused=str(error))
    examples = SpanEncoder(tokenizer, special).encode(spans)
    trained: list[int] = []
    served = spanned = 0
    for number, part in enumerate(parts):
        here = [index for index, message in enumerate(part.messages) if message.in_loss]
        trained += here
        ids, mask = examples[number]
        tries = [
            _compare(tokenizer, form, row.tools, here, ids.tolist(), mask)
            for form in _forms(row.messages[: len(part.messages)])
        ]
        best = min(tries, key=lambda one: (bool(one.unlike), one.served, one.spanned))
        if best.unlike:
            notes = template_notes(tokenizer, special, parts)
            return Outcome("", len(parts), best.unlike, printed="; ".join(notes))
        served += best.served
        spanned += best.spanned
    wanted = [i for i, turn in enumerate(row.messages) if _is_trained(turn)]
    if sorted(trained) != wanted:
        return Outcome("", len(parts), f"trained on the turns {sorted(trained)}, not {wanted}")
    return Outcome("", len(parts), "", served, spanned)


def _is_trained(turn: Turn) -> bool:
    return turn["role"] == "assistant" and turn.get("weight") != 0


def _conversation(row: Row) -> Conversation:
    rules = TurnRules(("assistant",), "completion", set())
    # JSON text, as in a file, keeps null in arguments.
    named = [
        (
            f"messages[{number}]",
            turn | ({"tool_calls": json.dumps(turn["tool_calls"])} if "tool_calls" in turn else {}),
        )
        for number, turn in enumerate(row.messages)
    ]
    read = read_turns(named, context=0, rules=rules)
    return Conversation(read.messages, tools=tools_text("tools", row.tools) if row.tools else "")


def _forms(turns: list[Turn]) -> Iterator[list[Turn]]:
    """The turns in each form that a template may expect."""
    thoughts = ["reasoning_content", "thinking", "tags"]
    thinks = any("reasoning_content" in turn for turn in turns)
    called = any("tool_calls" in turn for turn in turns)
    empty = any(not turn["content"] for turn in turns)
    for thought, as_text, words in itertools.product(
        thoughts if thinks else thoughts[:1],
        (False, True) if called else (False,),
        ("text", "null", "absent") if empty else ("text",),
    ):
        yield [_form(turn, thought, as_text, words) for turn in turns]


def _form(turn: Turn, thought: str, as_text: bool, words: str) -> Turn:
    found = {key: value for key, value in turn.items() if key != "weight"}
    reasoning = found.pop("reasoning_content", None)
    if found["role"] == "assistant" and not found["content"] and words != "text":
        found["content"] = None
        if words == "absent":
            del found["content"]
    if reasoning is not None and thought == "tags":
        found["content"] = f"<think>\n{reasoning}\n</think>\n\n{turn['content']}"
    elif reasoning is not None:
        found[thought] = reasoning
    if "tool_calls" in found and as_text:
        found["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": _json(call)}}
            for call in found["tool_calls"]
        ]
    return found


def _json(call: Turn) -> str:
    return json.dumps(call["function"]["arguments"], ensure_ascii=False)


class _Try(NamedTuple):
    """A comparison with one form, as Outcome."""

    unlike: str
    served: bool = False
    spanned: bool = False


def _compare(
    tokenizer: Any,
    turns: list[Turn],
    tools: list[Turn] | None,
    here: list[int],
    ids: list[int],
    mask: Any,
) -> _Try:
    options: dict[str, Any] = {"strftime_now": DATE.strftime, "tools": tools}
    marked = "{%generation" in _squeezed(tokenizer.get_chat_template(None, tools))
    try:
        found = tokenizer.apply_chat_template(
            turns, return_dict=True, return_assistant_tokens_mask=marked, **options
        )
    except Exception as error:  # a template is foreign code
        return _Try(f"the template fails: {error}"[:200])
    whole = found["input_ids"]
    if lost := _lost(tokenizer, turns, here, ids, mask):
        return _Try(lost)
    unlike, spanned = _unlike(tokenizer, ids, whole)
    if marked:
        differs = _marks_unlike(tokenizer, turns, here, (ids, mask), **options)
        flags = [bool(flag) for flag in found["assistant_masks"]][: len(ids)]
        flags += [True] * (len(ids) - len(flags))  # EOS, where the template has none
        others = sum(turn["role"] == "assistant" for turn in turns) - len(here)
        # Its marks are of characters: a token may span the beginning or the end of one.
        spanned = spanned or (not others and mask.tolist() != flags)
        return _Try(unlike or differs, False, spanned)
    prompts, across = _prompts_unlike(tokenizer, turns, here, (ids, mask), **options)
    served = bool(unlike) and _is_served(tokenizer, turns, (ids, mask), whole)
    return _Try(prompts or ("" if served else unlike), served, spanned or across)


def _prompts_unlike(
    tokenizer: Any,
    turns: list[Turn],
    here: list[int],
    example: tuple[list[int], Any],
    **options: Any,
) -> tuple[str, bool]:
    """How the text before a trained answer differs from a server's prompt; whether by tokens."""
    ids, mask = example
    runs = _runs(mask)
    if len(runs) != len(here):
        return f"{len(runs)} trained stretches of {len(here)} answers", False
    across = False
    for (start, _), index in zip(runs, here, strict=True):
        try:
            sent = tokenizer.apply_chat_template(
                turns[:index], return_dict=False, add_generation_prompt=True, **options
            )
        except Exception:  # no server can ask for this answer
            continue
        texts = _text(tokenizer, ids[:start]), _text(tokenizer, sent)
        if texts[0] != texts[1]:
            return f"the prompt ends {texts[0][-60:]!r}, a server's {texts[1][-60:]!r}", False
        across = across or ids[:start] != sent
    return "", across


def _is_served(
    tokenizer: Any, turns: list[Turn], example: tuple[list[int], Any], whole: list[int]
) -> bool:
    """Whether the template writes the conversation otherwise than it asks for its last answer.

    It drops the answer's reasoning, or rewrites what is before it. The words are the template's.
    """
    ids, mask = example
    start, _ = _runs(mask)[-1]
    asked, written = _text(tokenizer, ids[:start]), _text(tokenizer, whole)
    thinks = any({"reasoning_content", "thinking"} & turn.keys() for turn in turns)
    thinks = thinks or "<think>" in str(turns) + asked[-20:]
    words = _text(tokenizer, ids[start:]).split("</think>")[-1].strip()
    ends = (words, words.removesuffix(tokenizer.eos_token).strip())
    return written.strip().endswith(ends) and (thinks or not written.startswith(asked))


def _marks_unlike(
    tokenizer: Any,
    turns: list[Turn],
    here: list[int],
    example: tuple[list[int], Any],
    **options: Any,
) -> str:
    """How the mask differs from the template's marks of the trained answers, by their text."""
    (text,), (marks,) = render_jinja_template(
        conversations=[turns],
        chat_template=tokenizer.get_chat_template(None, options["tools"]),
        return_assistant_tokens_mask=True,
        **options,
        **tokenizer.special_tokens_map,
    )
    joined: list[tuple[int, int]] = []  # EOS may have marks of its own
    for start, end in marks:
        follows = bool(joined) and joined[-1][1] == start
        joined.append((joined.pop()[0] if follows else start, end))
    answers = [index for index, turn in enumerate(turns) if turn["role"] == "assistant"]
    theirs = list(filter(None, (_squeezed(text[start:end]) for start, end in joined)))
    if len(theirs) == len(answers):
        theirs = [one for one, index in zip(theirs, answers, strict=True) if index in here]
    runs = _runs(example[1])
    # A control token may take the white space behind it.
    ours = [_squeezed(_text(tokenizer, example[0][start:end])) for start, end in runs]
    if ours and theirs and ours[-1] == theirs[-1] + tokenizer.eos_token:
        theirs[-1] += tokenizer.eos_token  # the template has none
    return "" if ours == theirs else f"trained on is {ours}, the template marks {theirs}"


def _runs(mask: Any) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.astype(int), [0])))).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def _text(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def _squeezed(text: str) -> str:
    return "".join(normalize("NFC", text).replace("{%-", "{%").split())


def _unlike(tokenizer: Any, ids: list[int], whole: list[int]) -> tuple[str, bool]:
    """How the ids differ from the start of the template's; whether only a token spans an end."""
    for ours in (ids, ids[:-1]):  # EOS, where the template has none
        if ours is not ids and ids[-1] != tokenizer.eos_token_id:
            break
        if ours == whole[: len(ours)]:
            return "", False
    texts = _text(tokenizer, ids), _text(tokenizer, whole)
    if texts[1].startswith((texts[0], _text(tokenizer, ids[:-1]))):
        return "", True
    pairs = enumerate(zip(*texts, strict=False))
    at = next((place for place, (a, b) in pairs if a != b), min(map(len, texts)))
    here, there = (text[max(at - 20, 0) : at + 40] for text in texts)
    return f"{here!r} here, {there!r} there", False


def _lost(tokenizer: Any, turns: list[Turn], here: list[int], ids: list[int], mask: Any) -> str:
    """What of the trained answers is not in the trained text."""
    text = _text(tokenizer, np.array(ids)[mask].tolist())
    for index in here:
        turn = turns[index]
        words = [turn.get("content"), turn.get("reasoning_content"), turn.get("thinking")]
        words += [call["function"]["name"] for call in turn.get("tool_calls", ())]
        for one in filter(None, words):
            shown = one.split("</think>")[-1].strip()
            if normalize("NFC", shown) not in normalize("NFC", text):
                return f"{shown!r} is not trained on"
    return ""
