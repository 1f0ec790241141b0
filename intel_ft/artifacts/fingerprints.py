"""Fingerprints of contents: whether a model or its examples are the same as at another time."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from intel_ft.errors import UserError

WHOLE = 2**30  # bytes of weights that are hashed completely; of larger models, samples are
_BLOCK, _BLOCKS = 2**16, 32  # bytes of a sample, and samples of each tensor
_CONFIG_NOISE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")


def weights_fingerprint(files: Sequence[Path], whole: int = WHOLE) -> str:
    """A hash of the weights in `files`, however they are split into safetensors files.

    Up to `whole` bytes it covers every byte; beyond that each tensor's name, type and shape, and
    2 MiB of its values in 32 blocks, so that 14 GB take less than a second more than reading them.
    """
    complete = sum(path.stat().st_size for path in files) <= whole
    entries: list[tuple[str, str]] = []
    for path in files:
        with path.open("rb") as file:
            for name, kind, start, end in _parts(file, path):
                entries.append((f"{name} {kind}", _digest(file, start, end, complete=complete)))
    return hash_of(json.dumps(sorted(entries)).encode())


def config_fingerprint(folder: Path) -> str:
    """A hash of what config.json says of the architecture, without where it was written, and how.

    Raises UserError for a file that is not JSON.
    """
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from None
    kept = {key: value for key, value in values.items() if key not in _CONFIG_NOISE}
    return hash_of(json.dumps(kept, sort_keys=True).encode())


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A hash of the vocabulary, the special tokens and the chat template."""
    parts = (
        sorted(tokenizer.get_vocab().items()),
        {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        tokenizer.chat_template,
    )
    return hash_of(json.dumps(parts, sort_keys=True).encode())


def hash_of(*parts: bytes) -> str:
    """The SHA-256 of the parts, one after another, shortened to 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]


def _parts(file: BinaryIO, path: Path) -> Iterable[tuple[str, str, int, int]]:
    """Name, type and shape, first and last byte of each tensor; a pickle file is one part."""
    if path.suffix != ".safetensors":
        size = path.stat().st_size
        return [(path.name, str(size), 0, size)]
    length = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(length))
    return [
        (name, f"{of_one['dtype']} {of_one['shape']}", *(8 + length + n for n in offsets))
        for name, of_one in header.items()
        if name != "__metadata__" and (offsets := of_one["data_offsets"])
    ]


def _digest(file: BinaryIO, start: int, end: int, *, complete: bool) -> str:
    """The hash of bytes `start` to `end`, or of blocks that are spread evenly over them."""
    digest, size = hashlib.sha256(), end - start
    if complete or size <= _BLOCK * _BLOCKS:
        positions: Iterable[int] = range(start, end, _BLOCK)
    else:
        positions = (start + n * (size - _BLOCK) // (_BLOCKS - 1) for n in range(_BLOCKS))
    for position in positions:
        file.seek(position)
        digest.update(file.read(min(_BLOCK, end - position)))
    return digest.hexdigest()


def folder_state(folder: Path) -> str:
    """SHA-256, in hexadecimal, of the names, sizes and times of the files in `folder`."""
    state = [
        (str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def model_state(model: str | None) -> str | None:
    """What tells a model from what was in its folder before; its name where it is no folder."""
    return model if model is None or not Path(model).is_dir() else folder_state(Path(model))
