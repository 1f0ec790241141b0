"""Which files of a folder are uploaded, by the folder's kind, and free of local paths.

Only files named here are uploaded. Optimizer state, logs, metrics, checkpoints and everything else
in the folder stays where it is and is listed in the report.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from intel_ft.errors import UserError

TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
)
COMMON = (*TOKENIZER, "intel_ft.json", "LICENSE*", "NOTICE*", "USE_POLICY*")
BELONGS = {
    "adapter": ("adapter_config.json", "adapter_model.safetensors", *COMMON),
    "merged": (
        "config.json",
        "generation_config.json",
        "model*.safetensors",
        "model.safetensors.index.json",
        *COMMON,
    ),
    "openvino": (
        "config.json",
        "generation_config.json",
        "openvino_config.json",
        "openvino_*.xml",
        "openvino_*.bin",
        "graph.pbtxt",
        "ovms_config.json",
        "adapters/*/adapter_config.json",
        "adapters/*/adapter_model.safetensors",
        "export.json",
        "export.svg",
        *COMMON,
    ),
}
_WEIGHTS = {
    "adapter": "adapter_model.safetensors",
    "merged": "model*.safetensors",
    "openvino": "openvino_model.bin",
}
CARD = "README.md"
# Their strings are the model's vocabulary and tensor names, not settings.
_VOCABULARY = ("tokenizer.json", "vocab.json", "model.safetensors.index.json")
_NAMES_BASE = (
    "base_model",
    "base_model_name_or_path",
    "_name_or_path",
    "name_or_path",
    "tokenizer",
)
_PATH = re.compile(r"(?:/[^/\s]+){2,}/?|~/\S+|[A-Za-z]:\\\S+")
_XML_PATH = re.compile(r'\bvalue="((?:/[^/"\s]+){2,}/?)"')


@dataclass(frozen=True)
class File:
    """A file to upload: its path in the repository, and where its bytes are (or the bytes)."""

    path: str
    source: Path | bytes

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    def text(self) -> str:
        """Its content as UTF-8, undecodable bytes replaced."""
        data = self.source if isinstance(self.source, bytes) else self.source.read_bytes()
        return data.decode("utf-8", errors="replace")


def collect(folder: Path, kind: str, local_base: str, base_id: str) -> tuple[list[File], list[str]]:
    """The files of `folder` that belong on the Hub, and the paths of those that do not.

    Where a JSON file names the base model by `local_base`, the uploaded copy has `base_id` instead.
    Raises UserError where a file holds any other local path, and where there are no weights.
    """
    if not any(folder.glob(_WEIGHTS[kind])):
        raise UserError(f"{folder}: it has no weights (no file {_WEIGHTS[kind]})")
    files, left_out = [], []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if not any(_matches(name, pattern) for pattern in BELONGS[kind]):
            if name != CARD:
                left_out.append(name)
            continue
        files.append(File(name, _public(path, name, local_base, base_id)))
    return files, left_out


def _matches(name: str, pattern: str) -> bool:
    """As fnmatch, but `*` does not match a slash."""
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)


def _public(path: Path, name: str, local_base: str, base_id: str) -> Path | bytes:
    if path.suffix == ".xml":
        if match := _XML_PATH.search(path.read_text(encoding="utf-8", errors="replace")):
            raise UserError(f"{path}: contains a local path ({match[1]}): export the model again")
        return path
    if path.suffix != ".json" or name in _VOCABULARY:
        return path
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    changed = _with_id(values, (local_base, Path(local_base).name), base_id)
    for key, text in _strings(changed):
        if _PATH.fullmatch(text):
            raise UserError(f"{path}: {key} is a local path ({text}): remove it before publishing")
    if changed == values:
        return path
    return (json.dumps(changed, indent=2, ensure_ascii=False) + "\n").encode()


def _with_id(value: Any, old: tuple[str, ...], new: str, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _with_id(inner, old, new, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_with_id(inner, old, new, key) for inner in value]
    return new if key in _NAMES_BASE and value in old else value


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _strings(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, key)
