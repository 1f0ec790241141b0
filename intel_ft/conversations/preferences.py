"""Rows of preference data to conversations: pairs of answers, or answers judged good or bad.

A pair's columns are `chosen` and `rejected`: text, a turn, or a list of turns. The prompt is a
column of its own (text or turns), or the turns that both have in common. A judged answer has
`label`, or LLaMA-Factory's `kto_tag`.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from intel_ft.config_sections import DataConfig
from intel_ft.conversations.from_rows import ReadData, context_of, history_of, system_of, tools_of
from intel_ft.conversations.turns import TurnRules, read_turns, same_tools, text_of
from intel_ft.conversations.unsupported import (
    COLUMNS,
    columns_to_check,
    holds_something,
    refuse_media,
    says_good_or_bad,
)
from intel_ft.errors import UserError
from intel_ft.plurals import count_of
from intel_ft.sources.bad_rows import BadRow, BadRows
from intel_ft.sources.rows import Rows
from intel_ft.sources.spellings import as_override, rename
from intel_ft.templates.formats import CONTEXT, NAMES, THOUGHTS, TOOLS, Conversation, Format

Kind = Literal["pairs", "judged"]

PAIR = ("chosen", "rejected")
_PROMPTS = ("prompt", "instruction", "question", "messages", "conversations")
_ANSWERS = ("completion", "output", "response", "answer", "messages", "conversations")
_LABELS = ("label", "kto_tag")
_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_rating", "rejected_rating"),
)
_OTHER_NAMES = {
    "chosen": ("chosen_response", "chosen_messages", "preferred_output", "preferred", "accepted"),
    "rejected": ("rejected_response", "rejected_messages", "non_preferred_output", "dispreferred"),
}
_GOOD = {"true": True, "1": True, "yes": True, "desirable": True, "good": True}
_GOOD |= {"false": False, "0": False, "no": False, "undesirable": False, "bad": False}
_TRANSCRIPT = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")


def read_answers(rows: Rows, data: DataConfig, kind: Kind) -> tuple[ReadData, list[bool]]:
    """The conversations of each row's answers, and of judged ones whether they are good.

    Those of a pair follow each other, the chosen one first. In each, only the last answer is
    trained on. Judged answers may be given as pairs, too.

    Raises UserError for columns that do not fit, and, with data.on_bad=error, for rows that cannot
    be used.
    """
    taken = data.columns.keys() - data.columns.values()
    hidden = [column for column in rows.columns if column in taken]
    rows = rename(rows, data.columns, {*NAMES, *PAIR, *_LABELS, *_PROMPTS, *_ANSWERS})
    refuse_media(rows)
    paired = _is_paired(rows, kind)
    used = _columns(rows.columns, paired=paired)
    data_format: Format = "pairs" if paired else "judged"
    reasons = {**COLUMNS, **dict.fromkeys(THOUGHTS, "write it into the answers, as <think>")}
    checked = columns_to_check(data_format, rows.columns)
    checked += tuple(name for name in THOUGHTS if name in rows.columns)
    unused_keys: set[str] = set()
    found: list[Conversation] = []
    good: list[bool] = []
    indices: list[int] = []
    problems: dict[int, str] = {}
    for index, cells in enumerate(rows.cells((*used, *checked))):
        row = dict(zip((*used, *checked), cells, strict=True))
        try:
            for column in checked:
                if holds_something(row[column]):
                    raise BadRow(f"{column}: {reasons[column]}")
            if paired:
                answers, labels = _pair(row, unused_keys), [True, False]
            else:
                answers, labels = [_judged(row, unused_keys)], [_label(row)]
        except BadRow as problem:
            problems[index] = str(problem)
            continue
        found += answers
        good += labels
        indices += [index] * len(answers)
    bad = BadRows(rows, problems)
    if problems and (data.on_bad == "error" or not found):
        raise bad.error()
    if kind == "judged" and len(set(good)) == 1:
        raise UserError(
            f"{rows.source}: all answers are {'good' if good[0] else 'bad'} (column"
            f" {_first(_LABELS, rows.columns)}): method.loss=kto needs both"
        )
    scores = next((pair for pair in _SCORES if set(pair) <= set(used)), ())
    columns = [name for name in rows.columns if name not in used or name in scores] + hidden
    unused = (*columns, *(f"turns[].{key}" for key in sorted(unused_keys)))
    reason = f"columns {' and '.join(used[:2])}"
    return ReadData(data_format, reason, found, indices, unused, 0, bad), good


def kind_in(rows: Rows, data: DataConfig) -> Kind | None:
    """What the columns compare; None for plain data, and where data.format is set."""
    columns = {
        *rows.columns,
        *(name for name, other in data.columns.items() if other in rows.columns),
    }
    if data.format != "auto":
        return None
    if set(PAIR) <= columns:
        return "pairs"
    label = _first(_LABELS, rows.columns)
    judged = label and _first(_ANSWERS, columns) and says_good_or_bad(rows, label)
    return "judged" if judged else None


def _is_paired(rows: Rows, kind: Kind) -> bool:
    """Whether the rows are pairs. Raises UserError if they are not what the loss needs."""
    columns = rows.columns
    if set(PAIR) <= set(columns):
        return True
    label, answer = _first(_LABELS, columns), _first(_ANSWERS, columns)
    if kind == "judged":
        if label and answer:
            return False
        raise UserError(
            f"{rows.source}: method.loss=kto needs a column label (true or false) and an"
            f" answer (completion), or chosen and rejected; the columns are {', '.join(columns)}:"
            " set data.columns"
        )
    if label and answer:
        raise UserError(
            f"{rows.source}: column {label} judges single answers, but this method compares two"
            " (chosen, rejected): set method.name=preference and method.loss=kto"
        )
    raise UserError(
        f"{rows.source}: a method that compares two answers (a preference loss other than kto, or"
        " a reward model) needs the columns chosen and rejected; the columns are"
        f" {', '.join(columns)}: {_remedy(columns)}"
    )


def _remedy(columns: Sequence[str]) -> str:
    here = {column.strip().lower().replace(" ", "_"): column for column in columns}
    names = {}
    for name, others in _OTHER_NAMES.items():
        close = difflib.get_close_matches(name, here, n=1)
        other = _first((name, *others), here) or (close[0] if close else None)
        if other is not None and here[other] != name:
            names[name] = here[other]
    return f"did you mean {as_override(names)}?" if names else "set data.columns"


def _columns(columns: Sequence[str], *, paired: bool) -> tuple[str, ...]:
    """Those that are read, the answers first."""
    used: list[str | None] = list(PAIR)
    if paired:
        used += next((list(pair) for pair in _SCORES if set(pair) <= set(columns)), [])
    else:
        used = [_first(_LABELS, columns), _first(_ANSWERS, columns)]
    prompt = _first(_PROMPTS, columns)
    if prompt not in used:
        used.append(prompt)
    used += [name for name in (*CONTEXT, *TOOLS, "history", "system") if name in columns]
    return tuple(name for name in used if name is not None)


def _pair(row: Mapping[str, Any], unused: set[str]) -> list[Conversation]:
    for better, worse in _SCORES:
        high, low = _number(row.get(better)), _number(row.get(worse))
        if high is not None and low is not None and high < low:
            raise BadRow(f"{better} ({high:g}) is below {worse} ({low:g}): are columns swapped?")
    pair = [_conversation(row, name, unused) for name in PAIR]
    chosen, rejected = (one.messages for one in pair)
    for place, (one, other) in enumerate(zip(chosen[:-1], rejected[:-1], strict=False)):
        if one != other:
            raise BadRow(f"chosen and rejected differ in turn {place + 1}, before the last answer")
    if len(chosen) != len(rejected):
        raise BadRow(
            f"chosen has {count_of(len(chosen), 'turn')} and rejected {len(rejected)}: only the "
            "last may differ"
        )
    one, other = chosen[-1], rejected[-1]
    if (one.content.strip(), one.calls) == (other.content.strip(), other.calls):
        raise BadRow("chosen and rejected are equal")
    return pair


def _judged(row: Mapping[str, Any], unused: set[str]) -> Conversation:
    answer = _first(_ANSWERS, row)
    assert answer is not None  # _is_paired has found it
    return _conversation(row, answer, unused)


def _label(row: Mapping[str, Any]) -> bool:
    name = _first(_LABELS, row)
    value = row[str(name)]
    good = _GOOD.get(str(value).strip().lower())
    if good is None:
        raise BadRow(f"{name} is {value!r}: write true for a good answer and false for a bad one")
    return good


def _conversation(row: Mapping[str, Any], column: str, unused: set[str]) -> Conversation:
    """The prompt and the answer in `column`; all earlier answers are context."""
    answer = _turns(column, row[column])
    prompt = _first(_PROMPTS, row)
    before: list[tuple[str, object]] = []
    if prompt is not None and prompt != column:
        before = _before(prompt, row[prompt], answer)
    turns = [*before, *answer]
    if not turns or _role_of(turns[-1][1]) != "assistant":
        raise BadRow(f"{column} does not end with an assistant turn")
    if len(turns) == 1:
        raise BadRow(f"{column} has no prompt in front of its answer")
    rules = TurnRules(("assistant",), "completion", unused)
    read = read_turns(turns, context=len(turns) - 1, rules=rules)
    messages, tools = read.messages, same_tools(tools_of(row), read.tools, column)
    if before and (context := context_of(dict(row))):
        last = len(messages) - 2
        messages = (*messages[:last], replace(messages[last], context=context), messages[-1])
    earlier = tuple(history_of(row.get("history"), trained=False))
    system = system_of(dict(row))
    if system and messages[0].role == "system":
        if messages[0].content != system[0].content:
            raise BadRow(f"system differs from the system message in {column}")
        messages = messages[1:]
    return Conversation((*system, *earlier, *messages), tools=tools)


def _before(
    prompt: str, value: object, answer: Sequence[tuple[str, object]]
) -> list[tuple[str, object]]:
    """The turns of the prompt, or none where `answer` has them already (UltraFeedback)."""
    before = _turns(prompt, value, role="user")
    if not answer or _role_of(answer[0][1]) == "assistant":
        return before
    texts = [_text_of_turn(turn) for _, turn in answer]
    if any(_text_of_turn(turn) not in texts for _, turn in before):
        raise BadRow(f"{prompt} is not in the turns of {answer[0][0].partition('[')[0]}")
    return []


def _turns(
    name: str, value: object, role: Literal["user", "assistant"] = "assistant"
) -> list[tuple[str, object]]:
    """The turns of a cell; of text, it is one turn of `role`, or a transcript (HH-RLHF)."""
    if isinstance(value, dict):
        return [(name, value)]
    if isinstance(value, list):
        if not value:
            raise BadRow(f"{name} is empty")
        return [(f"{name}[{place}]", turn) for place, turn in enumerate(value)]
    text = text_of(name, value)
    if role == "assistant" and text.lstrip("\n").startswith("Human:"):
        return _transcript(name, text)
    return [(name, {"role": role, "content": text})]


def _transcript(name: str, text: str) -> list[tuple[str, object]]:
    """The turns of `\\n\\nHuman: ...\\n\\nAssistant: ...`."""
    parts = _TRANSCRIPT.split(text.strip("\n"))[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    said = zip(parts[::2], parts[1::2], strict=True)
    return [
        (f"{name}, turn {place}", {"role": roles[who], "content": what})
        for place, (who, what) in enumerate(said, 1)
    ]


def _role_of(turn: object) -> str | None:
    if not isinstance(turn, dict):
        return None
    role = turn.get("role") or turn.get("from")
    return "assistant" if role in ("assistant", "gpt") else str(role)


def _text_of_turn(turn: object) -> str:
    text = turn.get("content", turn.get("value")) if isinstance(turn, dict) else turn
    return str(text).strip()


def _number(value: object) -> float | None:
    try:
        return float(str(value))
    except ValueError:
        return None


def _first(names: Iterable[str], present: Iterable[str]) -> str | None:
    here = set(present)
    return next((name for name in names if name in here), None)
