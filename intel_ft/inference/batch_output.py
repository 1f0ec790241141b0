"""Answers to many prompts: asked in any order, kept one by one, whole at the end; called from
cli.generate.

While it is written, OUT is called OUT.partial: a first line of settings, then a line an answer,
flushed as they come. It gets its own name, in the prompts' order, when all are there. So OUT is
always whole, and what a crash, a dead server or Ctrl-C leaves is what --resume goes on from.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intel_ft.data.formats import Message
from intel_ft.errors import UserError
from intel_ft.files import write_text

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """One answer that is wanted: the `sample`-th to the prompt at `index`, both from 0."""

    index: int
    sample: int
    messages: tuple[Message, ...]
    seed: int


@dataclass(frozen=True)
class Answer:
    """`new_tokens` is None where a server does not say; `stopped` as in `Completion`."""

    text: str
    new_tokens: int | None
    stopped: bool


Engine = Callable[[Sequence[Asked]], Iterator[tuple[Asked, Answer]]]
"""Answers what is asked, in any order. What it has yielded before it raises counts."""


def all_asked(prompts: Sequence[tuple[Message, ...]], samples: int, seed: int) -> list[Asked]:
    """`samples` answers to each prompt; each has a seed of its own, the first one `seed` itself."""
    return [
        Asked(index, sample, messages, (seed + 1_000_003 * index + sample) % 2**31)
        for index, messages in enumerate(prompts)
        for sample in range(samples)
    ]


def line_of(asked: Asked, answer: Answer) -> dict[str, Any]:
    """What is written of an answer."""
    return {
        "index": asked.index,
        "sample": asked.sample,
        "prompt": asked.messages[-1].whole,
        "text": answer.text,
        "new_tokens": answer.new_tokens,
        "stopped": answer.stopped,
    }


def answer_into(
    output: Path,
    wanted: Sequence[Asked],
    engine: Engine,
    settings: dict[str, Any],
    *,
    resume: bool = False,
) -> int:
    """Write an answer to all that is `wanted` to `output`, JSON lines; how many were asked now.

    settings: what answers depend on besides prompts; a resumed run must have the same. Whatever
    the engine raises ends it, with all answers so far in OUT.partial.

    Raises UserError if `output` exists, or a partial one that is not to be, or cannot be, resumed.
    """
    partial = output.with_name(f"{output.name}.partial")
    if output.exists():
        raise UserError(f"{output} exists already: name another file, or remove it")
    prompts = [[(m.role, m.whole) for m in one.messages] for one in wanted if not one.sample]
    settings = settings | {"prompts": json.loads(json.dumps(prompts))}  # as it will be read again
    lines = _earlier(partial, settings, resume)
    done = {(line["index"], line["sample"]) for line in lines}
    missing = [one for one in wanted if (one.index, one.sample) not in done]
    if done:
        log.info("%s: %d answers are there, %d to go", partial, len(done), len(missing))
    partial.parent.mkdir(parents=True, exist_ok=True)
    # Written whole again: what was cut off in the middle of a line is gone.
    write_text(partial, "".join(map(_json, [settings, *lines])))
    try:
        with partial.open("a", encoding="utf-8") as file:
            for asked, answer in engine(missing):
                line = line_of(asked, answer)
                lines.append(line)
                file.write(_json(line))
                file.flush()
    except BaseException:
        log.warning("%s keeps %d of %d answers: --resume", partial, len(lines), len(wanted))
        raise
    lines.sort(key=lambda line: (line["index"], line["sample"]))
    write_text(output, "".join(map(_json, lines)))
    partial.unlink()
    return len(missing)


def _json(value: Any) -> str:
    # A server may send half of a surrogate pair, which UTF-8 cannot hold: escaped, it can.
    text = json.dumps(value, ensure_ascii=False)
    return (text if text.isascii() or _encodable(text) else json.dumps(value)) + "\n"


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _earlier(partial: Path, settings: dict[str, Any], resume: bool) -> list[dict[str, Any]]:
    """The answers in a partial file; none where there is no such file."""
    if not partial.exists():
        return []
    if not resume:
        raise UserError(f"{partial} is there from an earlier run: --resume goes on, or remove it")
    first, *rest = list(_whole_lines(partial)) or [{}]
    differing = [key for key in settings if first.get(key) != settings[key]]
    if differing:
        raise UserError(
            f"{partial}: was begun with another {' and '.join(differing)}: remove it, or say the "
            "same again"
        )
    return rest


def _whole_lines(path: Path) -> Iterable[dict[str, Any]]:
    for line in path.read_bytes().split(b"\n"):
        try:
            value = json.loads(line)
        except ValueError:  # the last line of a file that was cut off, or none
            continue
        if isinstance(value, dict):
            yield value
