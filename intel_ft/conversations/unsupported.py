"""Data that must not be trained on as plain conversations: recognised by its columns and keys.

Preference data holds answers that are to be unlearned. Media belong to what a model sees; training
without them would teach answers to other prompts.
"""

from collections.abc import Iterable, Sequence

from intel_ft.errors import UserError
from intel_ft.sources.rows import Rows
from intel_ft.templates.formats import READY_MADE, Format

_MEDIA = dict.fromkeys(
    ("image", "images", "audio", "audios", "video", "videos"), "only text can be trained on"
)
_CALLS = "tool calls belong in the turns of messages"
COLUMNS = {
    **_MEDIA,
    **dict.fromkeys(("tool_calls", "function_call"), _CALLS),
    "chat_template_kwargs": "arguments of the chat template are not supported",
}
"""Columns that are refused in rows where they hold something, each with the reason."""
KEYS = {
    **_MEDIA,
    **dict.fromkeys(
        ("train_detail", "training_detail", "loss_scale"),
        "an answer is trained on as a whole or not at all",
    ),
}
"""Keys of a turn that are refused where they hold something, each with the reason."""
_PREFERENCE = (
    *("chosen", "rejected", "chosen_response", "rejected_response", "rejected_messages"),
    *("preferred_output", "non_preferred_output"),
)
_GOOD_OR_BAD = ("true", "false", "0", "1", "yes", "no", "desirable", "undesirable", "good", "bad")


def columns_to_check(data_format: Format, columns: Sequence[str]) -> tuple[str, ...]:
    """Those of `columns` that are refused in rows where they hold something.

    What is ready-made was rendered with its tools and its reasoning in it.
    """
    names = _MEDIA if data_format in READY_MADE else COLUMNS
    return tuple(name for name in columns if name in names)


def holds_something(value: object) -> bool:
    """Whether a cell says anything: not null, empty, or empty JSON as text."""
    if isinstance(value, str):
        return value.strip() not in ("", "[]", "{}", "null", "None")
    if isinstance(value, list):
        return any(map(holds_something, value))
    if isinstance(value, dict):
        return any(map(holds_something, value.values()))
    return value is not None and value is not False


def refuse_media(rows: Rows) -> None:
    """Raise UserError for a column that holds images, audio or video, whatever its name."""
    for name, kind in rows.table.features.items():
        if any(word in repr(kind) for word in ("Image(", "Audio(", "Video(")):
            raise UserError(
                f"{rows.source}: column {name} holds images, audio or video: only text can be"
                " trained on, and the answers refer to what the model would not see"
            )


def refuse_preferences(rows: Rows, requested: str) -> None:
    """Raise UserError for data that says which answers are better or worse (DPO, KTO, rewards).

    requested: data.format. Where it names a format, columns with other answers are not used, but a
    label of good and bad answers is refused all the same.
    """
    columns = rows.columns
    if requested == "auto" and (found := [name for name in _PREFERENCE if name in columns]):
        raise UserError(
            f"{rows.source}: the columns {', '.join(found)} hold preferences, which only"
            " method.name=preference trains on: set it, or, to train on one answer per prompt, set"
            " data.format and data.columns"
        )
    if "completions" in columns and {"label", "labels"} & set(columns):
        raise UserError(
            f"{rows.source}: completions with labels (a process reward) cannot be trained on: give"
            " one completion per row"
        )
    answers = {"completion", "completions", "response", "output", "answer", "messages"}
    for name in ("label", "kto_tag"):
        if name in columns and answers & set(columns) and says_good_or_bad(rows, name):
            raise UserError(
                f"{rows.source}: column {name} marks answers as good or bad (KTO), and bad ones"
                " would be learned: set method.name=preference and method.loss=kto, or keep only"
                f" rows with good answers, and remove column {name}"
            )


def thinking_tag(text: str) -> str | None:
    """A tag in an answer that begins or ends a block of reasoning; None without one."""
    return next(
        (tag for tag in ("<think>", "</think>", "[THINK]", "[/THINK]") if tag in text), None
    )


def says_good_or_bad(rows: Rows, column: str) -> bool:
    """Whether all values of the column are words such as true and false."""
    values: Iterable[object] = (value for (value,) in rows.cells([column]) if value is not None)
    words = {str(value).strip().lower() for value in values}
    return bool(words) and words <= set(_GOOD_OR_BAD)
