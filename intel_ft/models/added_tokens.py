"""A tokenizer with new tokens: its files are extended, and loaded as any other tokenizer's.

What trains, what a run writes and what answers later thus read the same files. Needs no torch.
"""

import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from intel_ft.artifacts.resolve import read_json
from intel_ft.errors import UserError
from intel_ft.files import write_json
from intel_ft.templates.control_tokens import ORDINARY

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "tekken.json",
    "chat_template.jinja",
    "*.tiktoken",
)
"""The files of a tokenizer."""
_TEMPLATES = "additional_chat_templates"


@dataclass(frozen=True)
class ExtendedTokenizer:
    """A tokenizer's files with new tokens.

    folder: where they are while this process runs; ids: the new tokens; known: those that were
    asked for and that the tokenizer had already.
    """

    folder: Path
    ids: dict[str, int]
    known: dict[str, int]


def copy_files(source: Path, folder: Path, *, own_code: bool = False) -> None:
    """Copy the tokenizer's files in `source` to `folder`, byte for byte."""
    for pattern in (*FILES, *(("tokenization_*.py",) if own_code else ())):
        for path in source.glob(pattern):
            shutil.copyfile(path, folder / path.name)
    if (source / _TEMPLATES).is_dir():
        shutil.copytree(source / _TEMPLATES, folder / _TEMPLATES, dirs_exist_ok=True)


@cache
def extend(source: Path, words: tuple[str, ...], special: tuple[str, ...]) -> ExtendedTokenizer:
    """The tokenizer in the folder `source` with `words` and `special` as tokens.

    words: ordinary tokens, which any text may hold; special: control tokens. Raises UserError for a
    tokenizer without tokenizer.json.
    """
    path = source / "tokenizer.json"
    if not path.is_file():
        raise UserError(
            f"model.add_tokens: {source} has no tokenizer.json, and tokens are added to that file:"
            " write it with AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    backend = Tokenizer.from_file(str(path))
    wanted = {**dict.fromkeys(words, False), **dict.fromkeys(special, True)}
    known = {text: id_ for text in wanted if (id_ := backend.token_to_id(text)) is not None}
    backend.add_tokens(
        [
            AddedToken(text, special=is_special, normalized=False)
            for text, is_special in wanted.items()
            if text not in known
        ]
    )
    ids = {text: int(backend.token_to_id(text)) for text in wanted if text not in known}
    folder = Path(tempfile.mkdtemp(dir=_temporary().name))
    copy_files(source, folder)
    for extra in (source / "config.json", *source.glob("*.py")):  # which say the tokenizer's class
        if extra.is_file():
            shutil.copyfile(extra, folder / extra.name)
    backend.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        _with_tokens(read_json(source / "tokenizer_config.json"), ids, wanted),
    )
    return ExtendedTokenizer(folder, ids, known)


def require_single(tokenizer: Any, ids: dict[str, int]) -> None:
    """Raise UserError for a new token that `tokenizer` does not read as one token within a text."""
    for text, id_ in ids.items():
        found = tokenizer.backend_tokenizer.encode(f"a{text}b", add_special_tokens=False).ids
        if found.count(id_) != 1:
            raise UserError(
                f"model.add_tokens: the tokenizer does not read {text!r} as one token: it overlaps"
                " with another of its tokens, or its class changes what tokenizer.json says"
            )


@cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="intel_ft-tokenizer-")  # deleted at exit


def _with_tokens(
    values: dict[str, Any], ids: dict[str, int], is_special: dict[str, bool]
) -> dict[str, Any]:
    """tokenizer_config.json with the new tokens, in the keys that are there."""
    ordinary = [text for text in ids if not is_special[text]]
    special = [text for text in ids if is_special[text]]
    changed = dict(values)
    if "added_tokens_decoder" in values:
        entries = {
            str(id_): {
                "content": text,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": is_special[text],
            }
            for text, id_ in ids.items()
        }
        changed["added_tokens_decoder"] = values["added_tokens_decoder"] | entries
    for key in ("additional_special_tokens", "extra_special_tokens"):
        if isinstance(values.get(key), list):
            changed[key] = values[key] + special
    if ordinary:
        changed[ORDINARY] = [*values.get(ORDINARY, ()), *ordinary]
    return changed
