"""An mkdocs hook: generates config.md, all keys of a config, from the fields' own documentation."""

import ast
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from intel_ft import config as configuration
from intel_ft import config_method, config_sections, config_sources

INTRODUCTION = """\
# Configuration

A run is one YAML file; `intel-ft train FILE section.key=value ...` overrides values in it. An
unknown key is an error, and so is a key or section that is set twice.

- **Overrides.** A key that takes text gets the text unchanged, including `#`, `:`, quotes and
  leading zeros: `data.system_prompt=You are agent #7`. Other values are YAML: numbers, `true`,
  `null`, `[q_proj, v_proj]`. `null`, or nothing, unsets a key that may be null. The last override
  of a key counts.
- **Paths.** In `model.name_or_path`, `data.train`, `path` of a source, `data.eval`,
  `method.teacher` and `output.directory`, in the file and in overrides, `~` at the start is the
  home folder and `$NAME` or `${NAME}` the environment variable of that name; one that is not set is
  an error. A path that exists as it is written is not changed. Relative paths start at the working
  folder of the command.
- **Numbers** are decimal: `010` and `1:30`, which YAML reads as 8 and 90, are errors.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add config.md to the pages."""
    files.append(File.generated(config, "config.md", content="\n".join([INTRODUCTION, *_tables()])))
    return files


def documentation() -> dict[tuple[str, str], str]:
    """The strings below the fields of the config modules, by class and field ("": of the class)."""
    modules = (configuration, config_sections, config_method, config_sources)
    trees = [ast.parse(inspect.getsource(module)) for module in modules]
    texts: dict[tuple[str, str], str] = {}
    for section in (section for tree in trees for section in tree.body):
        if not isinstance(section, ast.ClassDef):
            continue
        field = ""
        for statement in section.body:
            if isinstance(statement, ast.AnnAssign):
                field = ast.unparse(statement.target)
            elif isinstance(statement, ast.Expr):
                texts[section.name, field] = ast.literal_eval(statement.value)
    return texts


def _tables() -> Iterator[str]:
    texts = documentation()
    for name, section in configuration.Config.model_fields.items():
        owner = getattr(section.annotation, "__name__", "")
        yield f"## {name}\n"
        yield from _table(owner, configuration.sections()[name], texts)
        if name == "data":
            yield "### A source in data.train\n"
            yield from _table("Source", config_sources.Source.model_fields, texts)


def _table(
    owner: str, fields: Mapping[str, FieldInfo], texts: Mapping[tuple[str, str], str]
) -> Iterator[str]:
    yield f"{texts[owner, '']}\n"
    yield "| key | values | default | meaning |\n|---|---|---|---|"
    for key, field in fields.items():
        default = _yaml(field.default) if field.default is not PydanticUndefined else "required"
        values = [_values(field.annotation), *map(_bound, field.metadata)]
        cells = (f"`{key}`", " ".join(filter(None, values)), default, texts[owner, key])
        yield "| " + " | ".join(" ".join(c.split()).replace("|", r"\|") for c in cells) + " |"
    yield ""


def _values(annotation: Any) -> str:
    """The type of a field in a reader's words; its choices, for a Literal."""
    inner = [one for one in get_args(annotation) if one is not type(None)]
    if "Literal" in str(annotation)[:16]:
        return ", ".join(f"`{choice}`" for choice in inner)
    if getattr(annotation, "__origin__", None) is list:
        return "list of " + _values(inner[0])
    if getattr(annotation, "__origin__", None) is dict:
        return "mapping of text to text" if inner == [str, str] else "mapping of names to values"
    if hasattr(annotation, "__metadata__"):
        return _values(inner[0])
    if inner:
        return " or ".join(map(_values, inner))
    names = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}
    name: str = annotation.__name__
    return names.get(name, name.lower())


def _bound(limit: Any) -> str:
    """A bound such as >= 1; nothing for other rules."""
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = [f"{signs[name]} {getattr(limit, name)}" for name in signs if hasattr(limit, name)]
    return "".join(found)


def _yaml(value: Any) -> str:
    shown = value.model_dump() if hasattr(value, "model_dump") else value
    return f"`{yaml.safe_dump(shown, default_flow_style=True).split(chr(10))[0]}`"
