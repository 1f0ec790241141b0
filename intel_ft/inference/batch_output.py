"""Write the answers to many prompts to a JSON Lines file that can be resumed.

Until it is complete, OUT is called OUT.partial: one line of settings, then one line per answer in
order of arrival, each flushed. When all answers are there, they are sorted and OUT gets its name.
So OUT is always complete, and --resume continues what a crash, a dead server or Ctrl-C left.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intel_ft.artifacts.fingerprints import model_state
from intel_ft.artifacts.resolve import resolve
from intel_ft.errors import UserError
from intel_ft.files import write_text
from intel_ft.plurals import count_of
from intel_ft.templates.formats import Message

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """A request for one answer: sample number `sample` of the prompt at `index`, both from 0."""

    index: int
    sample: int
    messages: tuple[Message, ...]
    seed: int


@dataclass(frozen=True)
class Answer:
    """An answer; `new_tokens` is None where a server reports none, `stopped` as in `Completion`."""

    text: str
    new_tokens: int | None
    stopped: bool


Engine = Callable[[Sequence[Request]], Iterator[tuple[Request, Answer]]]
"""Answers requests, in any order. Answers that were yielded before an exception are kept."""


def make_requests(prompts: Sequence[tuple[Message, ...]], samples: int, seed: int) -> list[Request]:
    """`samples` requests per prompt, each with its own seed; the first request has `seed`."""
    return [
        Request(index, sample, messages, (seed + 1_000_003 * index + sample) % 2**31)
        for index, messages in enumerate(prompts)
        for sample in range(samples)
    ]


def answer_record(request: Request, answer: Answer) -> dict[str, Any]:
    """The line of the output file for an answer."""
    return {
        "index": request.index,
        "sample": request.sample,
        "prompt": request.messages[-1].full_content,
        "text": answer.text,
        "new_tokens": answer.new_tokens,
        "stopped": answer.stopped,
    }


def model_files(source: str, base: str | None) -> list[str | None]:
    """What tells the model in a folder, and its base, from what was there before."""
    artifact = resolve(source)
    return [model_state(one) for one in (artifact.location, base or artifact.base_model)]


def write_answers(
    output: Path,
    requests: Sequence[Request],
    engine: Engine,
    settings: dict[str, Any],
    *,
    resume: bool = False,
) -> int:
    """Write the answers to all `requests` to `output`; returns how many were requested now.

    settings: what answers depend on besides the prompts; a resumed run must have the same. An
    exception of the engine is passed on; the answers so far are in OUT.partial.

    Raises UserError if `output` exists, or if OUT.partial exists and `resume` is False or its
    settings differ.
    """
    partial = output.with_name(f"{output.name}.partial")
    if output.exists():
        raise UserError(f"{output} already exists: name another file, or remove it")
    prompts = [
        [(m.role, m.full_content) for m in one.messages] for one in requests if not one.sample
    ]
    settings = settings | {"prompts": json.loads(json.dumps(prompts))}  # as read from a file
    lines = _read_partial(partial, settings, resume)
    done = {(line["index"], line["sample"]) for line in lines}
    missing = [one for one in requests if (one.index, one.sample) not in done]
    if done:
        logger.info("%s: %s done, %d to go", partial, count_of(len(done), "answer"), len(missing))
    partial.parent.mkdir(parents=True, exist_ok=True)
    # Rewritten, so that a line that was cut off in the middle is gone.
    write_text(partial, "".join(map(_json, [settings, *lines])))
    try:
        with partial.open("a", encoding="utf-8") as file:
            for request, answer in engine(missing):
                line = answer_record(request, answer)
                lines.append(line)
                file.write(_json(line))
                file.flush()
    except BaseException:
        logger.warning(
            "%s has %d of %d answers: continue with --resume", partial, len(lines), len(requests)
        )
        raise
    lines.sort(key=lambda line: (line["index"], line["sample"]))
    write_text(output, "".join(map(_json, lines)))
    partial.unlink()
    return len(missing)


# Keys of the settings line, for messages.
_NAMES = {"asked": "model or server", "files": "state of the model's files"}


def _json(value: Any) -> str:
    # A server may send an unpaired surrogate, which UTF-8 cannot encode unless it is escaped.
    text = json.dumps(value, ensure_ascii=False)
    return (text if text.isascii() or _encodable(text) else json.dumps(value)) + "\n"


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_partial(partial: Path, settings: dict[str, Any], resume: bool) -> list[dict[str, Any]]:
    """The answers in a partial file; none where there is no such file.

    Raises UserError where the file exists and `resume` is False or its settings differ.
    """
    if not partial.exists():
        return []
    if not resume:
        raise UserError(
            f"{partial} exists from an earlier run: continue it with --resume, or remove it"
        )
    first, *rest = list(_complete_lines(partial)) or [{}]
    differing = [_NAMES.get(key, key) for key in settings if first.get(key) != settings[key]]
    if differing:
        raise UserError(
            f"{partial} was started with a different {' and '.join(differing)}: use the same "
            "values, or remove it"
        )
    return rest


def _complete_lines(path: Path) -> Iterable[dict[str, Any]]:
    for line in path.read_bytes().split(b"\n"):
        try:
            value = json.loads(line)
        except ValueError:  # the last line of a file that was cut off, or none
            continue
        if isinstance(value, dict):
            yield value
