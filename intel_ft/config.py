"""The YAML configuration of a run: how a file and overrides are read and checked.

`load` reads a file and returns a `Config`; other packages receive it or one of its sections.
"""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError, model_validator
from pydantic.fields import FieldInfo

from intel_ft.config_sections import DataConfig, Sections
from intel_ft.config_sources import Section, Source
from intel_ft.config_text import describe, parse_value, parse_yaml, read_text
from intel_ft.conflicts import conflicts
from intel_ft.errors import UserError

S = TypeVar("S", bound=Section)


class Config(Sections):
    """A complete run: the contents of `config.yaml` in a run's folder."""

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        for conflict in conflicts(self):
            raise ValueError(conflict)
        return self

    def to_yaml(self) -> str:
        """The configuration as YAML that `load` reads back to an equal value."""
        values = self.model_dump(mode="json")
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        # PyYAML writes U+0085 and other separators unescaped, and reads them as line breaks.
        return text if yaml.safe_load(text) == values else yaml.safe_dump(values, sort_keys=False)


def load(path: Path, overrides: list[str] | None = None) -> Config:
    """Read a YAML file, apply `section.key=value` overrides and validate the result.

    Raises UserError with one line that names the file or override and the key.
    """
    values = parse_yaml(read_text(path, "no such config file"), str(path))
    if values is None:
        raise UserError(f"{path}: is empty: write sections such as model, data and output")
    if not isinstance(values, dict):
        raise UserError(
            f"{path}: expected sections such as model, data and train, not a list or text"
        )
    if not values.keys() & sections().keys():
        raise UserError(
            f"{path}: has none of the sections {', '.join(sections())}: to translate a config of"
            f" Axolotl, LLaMA-Factory or TRL, run intel-ft init --from {path} -o run.yaml"
        )
    # YAML reads a section whose keys are all commented out as None.
    values = {section: {} if keys is None else keys for section, keys in values.items()}
    for override in overrides or []:
        _apply(values, override)
    return build(values, str(path))


def build(values: dict[str, Any], origin: str) -> Config:
    """Validate a nested mapping; error messages start with `origin`, such as a file name."""
    # An absent section is an empty one, so that an error names the keys that it requires.
    return _checked(Config, {name: {} for name in sections()} | values, origin)


def changed(config: Config, override: str) -> Config:
    """`config` with one more `section.key=value` override. Raises UserError as `load` does."""
    values = config.model_dump()
    _apply(values, override)
    return build(values, override)


def check_data(values: dict[str, Any]) -> DataConfig:
    """Validate a data section given by command-line options."""
    return _checked(DataConfig, values, "options")


def _checked(section: type[S], values: dict[str, Any], origin: str) -> S:
    try:
        return section.model_validate(values)
    except ValidationError as error:
        keys = {name: list(fields) for name, fields in sections().items()}
        keys["data.train"] = list(Source.model_fields)
        problems = dict.fromkeys(describe(problem, keys) for problem in error.errors())
        raise UserError(f"{origin}: {'; '.join(problems)}") from None


def sections() -> dict[str, dict[str, FieldInfo]]:
    """The fields of each section, by their names."""
    return {
        name: field.annotation.model_fields
        for name, field in Config.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    }


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    section, dot, name = key.partition(".")
    if not (equals and dot and section and name):
        raise UserError(f"override {override!r}: write it as section.key=value")
    mapping = values.setdefault(section, {})
    if not isinstance(mapping, dict):
        raise UserError(f"override {override!r}: {section} is not a section")
    field = sections().get(section, {}).get(name)
    mapping[name] = parse_value(text, field.annotation if field else None, f"override {override!r}")
