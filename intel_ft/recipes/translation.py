"""Bookkeeping of a translation: each key of the file is mapped, not needed, or not carried over.

Every value of the file is taken out of `left` exactly once, and what no rule took is listed as
unknown, so that nothing is lost silently.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from intel_ft.config import Config, build
from intel_ft.errors import UserError
from intel_ft.recipes.measured import Measured

T = TypeVar("T")

MAX_VALUES = 5000
"""Limit on values. Configs have about a hundred; a few lines of YAML aliases make billions."""

PLACEHOLDER = "CHANGE-ME"


@dataclass
class Translation:
    """A translation in progress. `left` holds the values that are not taken yet, by dotted key.

    measured: the training data, where it is on this machine; data_name: what the lists call our
    data section, such as data.train[1] for a source.
    """

    origin: str
    dialect: str
    left: dict[str, Any]
    measured: Measured | None = None
    config: dict[str, dict[str, Any]] = field(default_factory=dict)
    mapped: list[str] = field(default_factory=list)
    not_needed: list[str] = field(default_factory=list)
    not_carried_over: list[str] = field(default_factory=list)
    off: list[str] = field(default_factory=list)
    data_name: str = "data"

    def take(self, key: str) -> Any:
        """Take the value of `key`; None if it is absent, empty or switched off."""
        value = self.left.get(key)
        if key in self.left and is_off(value):
            del self.left[key]
            self.off.append(key)
            return None
        return self.left.pop(key, None)

    def flag(self, key: str) -> bool:
        """Take `key`; whether it is switched on. 0 and "false" count as off."""
        value = self.take(key)
        if value is not None and str(value).lower() in ("0", "false", "no", "off"):
            self.off.append(key)
            return False
        return value is not None

    def read(self, key: str, change: Callable[[Any], T]) -> T | None:
        """Take `key` and convert it; None, with the key listed, if `change` raises ValueError."""
        value = self.take(key)
        if value is None:
            return None
        try:
            return change(value)
        except ValueError as error:
            self.cannot_carry(key, value, str(error))
            return None

    def put(self, new: str, value: Any, old: str, note: str = "") -> None:
        """Set the key `new` of our config because of `old` (a key and its value, or a reason)."""
        section, name = new.split(".")
        self.config.setdefault(section, {})[name] = value
        shown = f"{self.data_name}.{name}" if section == "data" else new
        self.mapped.append(f"{old} -> {shown}: {_display(value)}" + (f" ({note})" if note else ""))

    def value_of(self, new: str) -> Any:
        """The value of our key `new` so far; None if it is not set."""
        section, name = new.split(".")
        return self.config.get(section, {}).get(name)

    def move(self, old: str, new: str, default: Any = None) -> Any:
        """Map `old` to `new` unchanged, or set the other trainer's default. Returns the value."""
        return self.convert(old, new, lambda value: value, default)

    def convert(self, old: str, new: str, change: Callable[[Any], Any], default: Any = None) -> Any:
        """Map `old` to `new` through `change`, which raises ValueError with the reason it fails."""
        off = self.left.get(old) is False
        value = self.take(old)
        if value is None:
            if default is not None and not off:
                self.put(new, default, f"{self.dialect}'s default")
                return default
            return None
        try:
            result = change(value)
        except ValueError as error:
            self.cannot_carry(old, value, str(error))
            return None
        self.put(new, result, f"{old}: {_display(value)}")
        return result

    def name_column(self, ours: str, theirs: str, old: str) -> None:
        """Read the data's column `theirs` as `ours`; one name for data.train and data.eval."""
        columns = self.config.setdefault("data", {}).setdefault("columns", {})
        if columns.setdefault(ours, theirs) != theirs:
            reason = f"data.columns reads {columns[ours]} as {ours} in all data: rename this column"
            self.cannot_carry(old, theirs, reason)
        else:
            self.mapped.append(f"{old}: {theirs} -> {self.data_name}.columns: {{{ours}: {theirs}}}")

    def cannot_carry(self, key: str, value: Any, why: str) -> None:
        """List a value as not carried over."""
        self.not_carried_over.append(f"{key}: {_display(value)}: {why}")

    def take_not_needed(self, reasons: dict[str, str]) -> None:
        """Take the keys that are not needed here. A key may end in `*`."""
        for pattern, why in reasons.items():
            for key in self._matching(pattern):
                if (value := self.take(key)) is not None:
                    self.not_needed.append(f"{key}: {_display(value)}: {why}")

    def take_unsupported(self, reasons: dict[str, str]) -> None:
        """Take the keys that are not supported here. A key may end in `*`."""
        for pattern, why in reasons.items():
            for key in self._matching(pattern):
                if (value := self.take(key)) is not None:
                    self.cannot_carry(key, value, why)

    def close(self) -> None:
        """List the remaining keys as unknown, and fill in placeholders for required values."""
        for key in list(self.left):
            if (value := self.take(key)) is not None:
                self.cannot_carry(key, value, f"unknown key of {self.dialect}")
        self._drop_out_of_bounds()
        for section, name in (("model", "name_or_path"), ("data", "train")):
            if not self.config.get(section, {}).get(name):
                self.config.setdefault(section, {})[name] = PLACEHOLDER
                self.not_carried_over.append(f"{section}.{name} is not in the file: set it")
        self.config.setdefault("output", {}).setdefault("directory", "runs/translated")

    def _drop_out_of_bounds(self) -> None:
        try:
            Config.model_validate(self.config)
        except ValidationError as error:
            for problem in error.errors():
                section, name = (*map(str, problem["loc"]), "", "")[:2]
                if name in self.config.get(section, {}):
                    value = self.config[section].pop(name)
                    self.cannot_carry(f"{section}.{name}", value, problem["msg"])

    def checked(self) -> Config:
        """The resulting config. Raises UserError if its values cannot be combined."""
        return build(self.config, f"{self.origin}, after translation")

    def to_yaml(self) -> str:
        """The YAML file; comments at its top list what was not carried over."""
        lines = [f"# Translated from {self.origin} ({self.dialect})."]
        if self.not_carried_over:
            lines += ["# Not carried over:", *(f"# - {text}" for text in self.not_carried_over)]
        values = self.checked().model_dump(mode="json")
        kept = {
            section: {name: value for name, value in keys.items() if name in self.config[section]}
            for section, keys in values.items()
            if section in self.config
        }
        if isinstance(sources := kept["data"]["train"], list):
            kept["data"]["train"] = [
                {name: value for name, value in source.items() if value is not None}
                for source in sources
            ]
        text = yaml.safe_dump(kept, sort_keys=False)
        return "\n".join(map(printable, lines)) + "\n\n" + text

    def facts(self) -> dict[str, Any]:
        """The lists, for --json."""
        return {
            "dialect": self.dialect,
            "mapped": self.mapped,
            "no_meaning_here": self.not_needed,
            "not_carried_over": self.not_carried_over,
            "off_or_empty": self.off,
        }

    def lines(self) -> Iterator[str]:
        """The lists as text."""
        yield f"{self.origin}: {self.dialect}"
        for title, texts in (
            ("mapped", self.mapped),
            ("not needed here", self.not_needed),
            ("not carried over", self.not_carried_over),
        ):
            yield f"\n{title}:"
            yield from (f"  {printable(text)}" for text in texts or ["(nothing)"])
        if self.off:
            yield ""
            yield printable(f"off or empty, so ignored: {', '.join(self.off)}")

    def _matching(self, pattern: str) -> list[str]:
        if pattern.endswith("*"):
            return [key for key in self.left if key.startswith(pattern[:-1])]
        return [pattern] if pattern in self.left else []


def is_off(value: Any) -> bool:
    """Whether a value means off or empty. 0 does not: it is a number."""
    return value is None or value is False or value in ("", "none", "null", [], {})


def flatten(values: dict[str, Any]) -> dict[str, Any]:
    """Flatten mappings to dotted keys, lists of mappings to key[0].name; keep other lists.

    Raises UserError if there are more values than any config has.
    """
    flat: dict[str, Any] = {}
    waiting: list[tuple[str, Any]] = [("", values)]
    seen = 0
    while waiting:
        key, value = waiting.pop()
        seen += 1
        if seen > MAX_VALUES:
            raise UserError(f"more than {MAX_VALUES} values: this is not a trainer's config")
        if isinstance(value, dict) and value:
            dot = f"{key}." if key else ""
            waiting += [(f"{dot}{name}", inner) for name, inner in reversed(value.items())]
        elif isinstance(value, list) and any(isinstance(one, dict | list) for one in value):
            waiting += [(f"{key}[{i}]", one) for i, one in reversed(list(enumerate(value)))]
        else:
            flat[key] = value
    return flat


def choices(section: type[BaseModel], name: str) -> tuple[Any, ...]:
    """The values that our config allows for a field of type Literal, or list of Literal."""
    annotation = section.model_fields[name].annotation
    return tuple(inner for one in get_args(annotation) for inner in (get_args(one) or (one,)))


def printable(text: str) -> str:
    """`text` on one line, with line breaks and control characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _display(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
