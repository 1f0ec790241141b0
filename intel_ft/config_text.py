"""Reads the text of a config: YAML with one meaning, overrides, paths, and what is wrong with them.

It knows no field of the configuration; `config` and the importers of other trainers' files use it.
"""

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

from intel_ft.errors import UserError

SOURCES = "sources"
"""The tag of data.train as a list, in the place that pydantic gives to an error."""
_VARIABLE = re.compile(r"\$(?:\{(?P<braced>\w+)\}|(?P<bare>[A-Za-z_]\w*))")
_OTHER_BASE = re.compile(r"[-+]?(?:0[0-9_]+|[0-9_]+(?::[0-5]?[0-9])+(?:\.[0-9_]*)?)")


class _Refused(Exception):
    """Valid YAML that is refused; the message has the line and the remedy."""


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key stands once, and a number has no second meaning."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                line, name = key.start_mark.line + 1, (key.tag, key.value)
                if name in first:
                    lines = f"in line {first[name]} and again in line {line}"
                    raise _Refused(f"{key.value} is set twice, {lines}: keep one of them")
                first[name] = line
        return node


def _decimal(loader: _Loader, node: Any) -> Any:
    """The number in `node`. YAML 1.1 reads 010 as 8 and 1:30 as 90."""
    if _OTHER_BASE.fullmatch(node.value):
        raise _Refused(
            f"line {node.start_mark.line + 1}: {node.value} is read as different numbers by"
            " different programs: write a decimal number without leading zeros, or put text in"
            " quotes"
        )
    kind = node.tag.rpartition(":")[2]
    return getattr(loader, f"construct_yaml_{kind}")(node)


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _decimal)


def read_text(path: Path, missing: str = "no such file") -> str:
    """The text of a UTF-8 file, without a byte order mark; UserError names the file."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: {missing}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from None


def parse_yaml(text: str, origin: str) -> Any:
    """The values in `text`; UserError, one line that begins with `origin`, names a line in it.

    A key that stands twice in a mapping is refused, because YAML would drop the first.
    """
    try:
        return yaml.load(text, _Loader)
    except _Refused as error:
        fact = str(error) if "\n" in text else str(error).removeprefix("line 1: ")
        raise UserError(f"{origin}: {fact}") from None
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{origin}: not valid YAML: {_yaml_problem(error, text)}") from None


_YAML_WORDS = (
    (
        "mapping values are not allowed here",
        "a second ': ' in one line, or a wrong indentation: put text that has ': ' in quotes",
    ),
    (r"found character '\\t' that cannot start any token", "a tab: indent with spaces"),
    (
        "found character '(.)' that cannot start any token",
        r"a value cannot start with \1: put it in quotes",
    ),
    ("while scanning for the next token", ""),
    ("found unexpected end of stream", "the closing quote is missing"),
    ("'?<(?:stream end|document end)>'?", "the end of the text"),
    ("expected the node content, but found", "a value is missing before"),
    ("could not find expected ':'", "':' is missing, or a line is indented too little"),
    (
        "expected <block end>, but found '?<?([^'>]+)>?'?",
        "a line is indented unlike the ones before it",
    ),
    ("while (?:parsing|scanning) an? ", "in the "),
    ("flow mapping", "{ }"),
    ("flow sequence", "[ ]"),
    ("flow node", "value"),
    ("block mapping", "section"),
    ("block (?:collection|sequence)", "list"),
    ("simple key", "key"),
)
"""Patterns in PyYAML's messages, and what is printed in their place."""


def _yaml_problem(error: Exception, text: str) -> str:
    """What is wrong and where, in one line, with what it is part of."""
    if isinstance(error, yaml.reader.ReaderError):
        where = f"line {text.count(chr(10), 0, error.position) + 1}"
        return f"{where}: the character U+{error.character:04X} is not allowed"
    if not isinstance(error, yaml.MarkedYAMLError):
        return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
    problem, context = error.problem or "", error.context or ""
    for pattern, words in _YAML_WORDS:
        problem, context = (re.sub(pattern, words, one) for one in (problem, context))
    marks = (error.problem_mark, error.context_mark)
    mark = next((mark for mark in marks if mark is not None), None)
    where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
    part = context and error.context_mark and f" ({context} of line {error.context_mark.line + 1})"
    where = where if "\n" in text else where.removeprefix("line 1, ")
    return f"{where}{problem or context}{part if problem and part else ''}"


def parse_value(text: str, annotation: Any, origin: str) -> Any:
    """The value that `text` gives a field of this type: for a text field the text, else YAML.

    Where a field may be null, "null" and no text stand for that.
    """
    kinds = kinds_of(annotation)
    if NoneType in kinds and text in ("", "null"):
        return None
    is_text = bool(kinds & {str, Path}) and not kinds - {str, Path, NoneType}
    if is_text or (kinds == {str, list} and not text.startswith("[")):
        return text
    return parse_yaml(text, origin)


def kinds_of(annotation: Any) -> set[type]:
    """The types of a field's values; those of its choices, for a Literal."""
    origin = get_origin(annotation)
    if origin is Literal:
        return {type(choice) for choice in get_args(annotation)}
    if origin is Annotated:
        return kinds_of(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return {kind for one in get_args(annotation) for kind in kinds_of(one)}
    return {origin or annotation}


def expand_path(text: str) -> str:
    """`text` with ~ at its start and $NAME or ${NAME} replaced, as a shell does.

    Raises ValueError for a variable that is not set; a path that exists as it stands is kept.
    """
    if "$" in text and not Path(text).exists():
        for match in _VARIABLE.finditer(text):
            name = match["braced"] or match["bare"]
            if name not in os.environ:
                raise ValueError(f"the environment variable {name} is not set")
        text = _VARIABLE.sub(lambda match: os.environ[match["braced"] or match["bare"]], text)
    return os.path.expanduser(text)  # noqa: PTH111 (text that may be a Hub id)


def distinct_texts(texts: list[str]) -> list[str]:
    """The texts, each once. Raises ValueError for one that is empty or white space."""
    if empty := [text for text in texts if not text.strip()]:
        raise ValueError(f"{empty[0]!r} has no text")
    return list(dict.fromkeys(texts))


def names_or_pattern(value: str | list[str]) -> str | list[str]:
    """`value`; ValueError where text is no known word and no pattern of modules' full names."""
    if isinstance(value, str) and value not in ("all-linear", "attention-only"):
        if re.fullmatch(r"[\w., -]*", value):
            raise ValueError(
                "write all-linear, attention-only, a list such as [q_proj, v_proj], or a regular"
                " expression that matches full names, such as .*\\.(q|v)_proj"
            )
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
    return value


def describe(problem: Any, sections: Mapping[str, list[str]]) -> str:
    """One of pydantic's errors as a clause with key and value. sections: all valid keys."""
    place = problem["loc"]
    where = ".".join(str(part) for part in place[:2])
    if SOURCES in place[2:3] and len(place) > 3:
        where = ".".join([f"{where}[{place[3]}]", *map(str, place[4:5])])
    if problem["type"] == "extra_forbidden":
        return f"unknown key {where}{_nearest(place, sections)}"
    if problem["type"] == "missing":
        return f"{where} is required"
    if problem["type"] == "model_type" and len(place) == 1:
        return _not_a_section(where, problem["input"], sections)
    message = message_of(problem)
    if not where:
        return message
    if isinstance(problem["input"], dict | list):
        kind = "a list" if isinstance(problem["input"], list) else "a section"
        given = f", not {kind}" if problem["type"].endswith("_type") else ""
        return f"{where}: {message}{given}"
    return f"{where}={problem['input']}: {message[0].lower()}{message[1:]}{_share(problem)}"


def _not_a_section(name: str, value: Any, sections: Mapping[str, list[str]]) -> str:
    """A section that was given as one value, which its first key may have been meant to have."""
    keys = sections[name]
    if isinstance(value, list):
        return f"{name}: must be a section (valid keys: {', '.join(keys)})"
    return f"{name}={value}: must be a section, such as {name}: {{{keys[0]}: {value}}}"


def _share(problem: Any) -> str:
    """How to write the percentage, after the message; empty where none is meant."""
    given = str(problem["input"]).strip()
    limits = problem.get("ctx", {})
    if not given.endswith("%") and limits.get("lt", limits.get("le")) != 1:
        return ""
    try:
        percent = float(given.removesuffix("%"))
    except ValueError:
        return ""
    return f" (write {percent:g} % as {percent / 100:g})"


def message_of(problem: Any) -> str:
    """The message of one of pydantic's errors, without the key and the value."""
    text = str(problem["msg"])
    return text.removeprefix("Value error, ").replace("Input should be", "must be")


def _nearest(location: tuple[str | int, ...], sections: Mapping[str, list[str]]) -> str:
    """A hint at the valid key that was probably meant, in this section or another one."""
    unknown = str(location[-1])
    if SOURCES in location[2:3]:
        close = difflib.get_close_matches(unknown, sections["data.train"], n=1)
        return f" (did you mean {close[0]}?)" if close else ""
    tops = [name for name in sections if "." not in name]
    valid = tops if len(location) == 1 else sections[str(location[0])]
    if close := difflib.get_close_matches(unknown, valid, n=1):
        return f" (did you mean {'.'.join([*map(str, location[:-1]), close[0]])}?)"
    if len(location) > 1:
        for other in _dotted(sections):
            if other.endswith(f".{unknown}"):
                return f" (did you mean {other}?)"
    return f" (valid keys: {', '.join(valid)})"


def _dotted(sections: Mapping[str, list[str]]) -> Iterator[str]:
    tops = ((name, keys) for name, keys in sections.items() if "." not in name)
    return (f"{section}.{key}" for section, keys in tops for key in keys)
