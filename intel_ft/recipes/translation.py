"""What becomes of each key of a foreign config: mapped, without meaning here, or not possible;
called from the three dialects of recipes.

Every value of the file is taken out of `left` exactly once; what no rule took is listed as unknown.
So nothing is lost silently.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from intel_ft.config import Config, build
from intel_ft.errors import UserError

T = TypeVar("T")

MOST_VALUES = 5000
"""A config has a hundred values or so; YAML aliases can stand for billions in a few lines."""

PLACEHOLDER = "CHANGE-ME"


@dataclass
class Translation:
    """A config under way. `left` holds the values nobody has taken yet, by dotted key."""

    origin: str
    dialect: str
    left: dict[str, Any]
    config: dict[str, dict[str, Any]] = field(default_factory=dict)
    mapped: list[str] = field(default_factory=list)
    meaningless: list[str] = field(default_factory=list)
    impossible: list[str] = field(default_factory=list)
    off: list[str] = field(default_factory=list)

    def take(self, key: str) -> Any:
        """The value of `key`, now taken; None where it is absent, empty or switched off."""
        value = self.left.get(key)
        if key in self.left and is_off(value):
            del self.left[key]
            self.off.append(key)
            return None
        return self.left.pop(key, None)

    def flag(self, key: str) -> bool:
        """Whether `key` is switched on; taken. 0 and "false" are off, too."""
        value = self.take(key)
        if value is not None and str(value).lower() in ("0", "false", "no", "off"):
            self.off.append(key)
            return False
        return value is not None

    def read(self, key: str, change: Callable[[Any], T]) -> T | None:
        """The value of `key` through `change`; None, and listed, where that raises ValueError."""
        value = self.take(key)
        if value is None:
            return None
        try:
            return change(value)
        except ValueError as error:
            self.cannot(key, value, str(error))
            return None

    def put(self, new: str, value: Any, old: str, note: str = "") -> None:
        """Set our key `new`, because of `old` (a key and its value, or the reason)."""
        section, name = new.split(".")
        self.config.setdefault(section, {})[name] = value
        self.mapped.append(f"{old} -> {new}: {_shown(value)}" + (f" ({note})" if note else ""))

    def got(self, new: str) -> Any:
        """What our key `new` has been set to so far; None where it has not."""
        section, name = new.split(".")
        return self.config.get(section, {}).get(name)

    def move(self, old: str, new: str, default: Any = None) -> Any:
        """Map `old` to `new` as it is; where absent, the other trainer's default. The value."""
        return self.convert(old, new, lambda value: value, default)

    def convert(self, old: str, new: str, change: Callable[[Any], Any], default: Any = None) -> Any:
        """Map `old` to `new` through `change`, which raises ValueError with why it cannot."""
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
            self.cannot(old, value, str(error))
            return None
        self.put(new, result, f"{old}: {_shown(value)}")
        return result

    def cannot(self, key: str, value: Any, why: str) -> None:
        """List a value that has meaning and that we cannot carry over."""
        self.impossible.append(f"{key}: {_shown(value)}: {why}")

    def needless(self, reasons: dict[str, str]) -> None:
        """Take the keys that mean nothing here. A key may end in `*`."""
        for pattern, why in reasons.items():
            for key in self._matching(pattern):
                if (value := self.take(key)) is not None:
                    self.meaningless.append(f"{key}: {_shown(value)}: {why}")

    def unsupported(self, reasons: dict[str, str]) -> None:
        """Take the keys that are known and cannot be had here. A key may end in `*`."""
        for pattern, why in reasons.items():
            for key in self._matching(pattern):
                if (value := self.take(key)) is not None:
                    self.cannot(key, value, why)

    def close(self) -> None:
        """List what is left as unknown, and put placeholders where our config needs a value."""
        for key in list(self.left):
            if (value := self.take(key)) is not None:
                self.cannot(key, value, f"unknown key of {self.dialect}")
        self._drop_what_is_out_of_bounds()
        for section, name in (("model", "name_or_path"), ("data", "train")):
            if not self.config.get(section, {}).get(name):
                self.config.setdefault(section, {})[name] = PLACEHOLDER
                self.impossible.append(f"{section}.{name} is not in the file: fill it in")
        self.config.setdefault("output", {}).setdefault("directory", "runs/translated")

    def _drop_what_is_out_of_bounds(self) -> None:
        try:
            Config.model_validate(self.config)
        except ValidationError as error:
            for problem in error.errors():
                section, name = (*map(str, problem["loc"]), "", "")[:2]
                if name in self.config.get(section, {}):
                    value = self.config[section].pop(name)
                    self.cannot(f"{section}.{name}", value, problem["msg"])

    def checked(self) -> Config:
        """Our configuration. Raises UserError where values do not fit together."""
        return build(self.config, f"{self.origin}, translated")

    def to_yaml(self) -> str:
        """The YAML file, opening with what could not be carried over."""
        lines = [f"# Translated from {self.origin} ({self.dialect})."]
        if self.impossible:
            lines += ["# Not carried over:", *(f"# - {text}" for text in self.impossible)]
        values = self.checked().model_dump(mode="json")
        kept = {
            section: {name: value for name, value in keys.items() if name in self.config[section]}
            for section, keys in values.items()
            if section in self.config
        }
        text = yaml.safe_dump(kept, sort_keys=False)
        return "\n".join(map(printable, lines)) + "\n\n" + text

    def facts(self) -> dict[str, Any]:
        """The lists, for --json."""
        return {
            "dialect": self.dialect,
            "mapped": self.mapped,
            "no_meaning_here": self.meaningless,
            "not_carried_over": self.impossible,
            "off_or_empty": self.off,
        }

    def lines(self) -> Iterator[str]:
        """The lists, for a reader."""
        yield f"{self.origin}: {self.dialect}"
        for title, texts in (
            ("mapped", self.mapped),
            ("no meaning here", self.meaningless),
            ("not carried over", self.impossible),
        ):
            yield f"\n{title}:"
            yield from (f"  {printable(text)}" for text in texts or ["(nothing)"])
        if self.off:
            yield ""
            yield printable(f"off or empty there, as here: {', '.join(self.off)}")

    def _matching(self, pattern: str) -> list[str]:
        if pattern.endswith("*"):
            return [key for key in self.left if key.startswith(pattern[:-1])]
        return [pattern] if pattern in self.left else []


def is_off(value: Any) -> bool:
    """Whether a value switches off or leaves empty what its key is about. 0 is a number."""
    return value is None or value is False or value in ("", "none", "null", [], {})


def flatten(values: dict[str, Any]) -> dict[str, Any]:
    """Nested mappings as dotted keys, and lists of mappings as key[0].name; other lists stay.

    Raises UserError for more values than any config has.
    """
    flat: dict[str, Any] = {}
    waiting: list[tuple[str, Any]] = [("", values)]
    seen = 0
    while waiting:
        key, value = waiting.pop()
        seen += 1
        if seen > MOST_VALUES:
            raise UserError(f"more than {MOST_VALUES} values: this is no trainer's config")
        if isinstance(value, dict) and value:
            dot = f"{key}." if key else ""
            waiting += [(f"{dot}{name}", inner) for name, inner in reversed(value.items())]
        elif isinstance(value, list) and any(isinstance(one, dict | list) for one in value):
            waiting += [(f"{key}[{i}]", one) for i, one in reversed(list(enumerate(value)))]
        else:
            flat[key] = value
    return flat


def choices(section: type[BaseModel], name: str) -> tuple[Any, ...]:
    """The values that our config knows for a field that is a choice, or a list of choices."""
    annotation = section.model_fields[name].annotation
    return tuple(inner for one in get_args(annotation) for inner in (get_args(one) or (one,)))


def printable(text: str) -> str:
    """`text` on one line: line breaks and control characters as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
