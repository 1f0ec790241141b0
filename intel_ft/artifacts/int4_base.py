"""Compressed bases in the user's cache: each a folder with an IR and how it was made."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intel_ft.artifacts.ir_weights import CompressedTensor, digest_of, read_compressed
from intel_ft.artifacts.provenance import Provenance
from intel_ft.errors import IntelFTError, UserError
from intel_ft.files import user_cache

RECORD = "base.json"


@dataclass(frozen=True, eq=False)
class Int4Base:
    """A compressed base: its IR's folder, its weights by module, and their digest."""

    folder: Path
    weights: Mapping[str, CompressedTensor]
    digest: str


def open_int4_base(folder: Path) -> Int4Base:
    """The compressed base in `folder`. Raises IntelFTError where its weights are damaged."""
    weights = read_compressed(folder)
    digest, expected = digest_of(weights), read_record(folder).get("sha256")
    if digest != expected:
        raise IntelFTError(
            f"{folder}: the weights of this compressed base are damaged: delete the folder; the"
            " next run recreates it"
        )
    return Int4Base(folder, weights, digest)


def find_int4_base(digest: str) -> Path | None:
    """The folder of the compressed base with this digest, None where the cache has none."""
    for path in sorted(cache_folder().glob(f"*/{RECORD}")):
        if read_record(path.parent).get("sha256") == digest:
            return path.parent
    return None


def trained_int4(adapter: Path) -> str | None:
    """The digest of the int4 weights that the adapter in this folder was trained on, or None."""
    provenance = Provenance.load(adapter)
    return None if provenance is None else provenance.base_int4


def require_any_base(adapter: Path) -> None:
    """Raise UserError for an adapter that fits only the int4 weights that it was trained on."""
    provenance = Provenance.load(adapter)
    if provenance is not None and provenance.needs_int4:
        raise UserError(
            f"{adapter}: it compensates for the rounding of its int4 base (method.init=loftq), so"
            " it works with no other weights: export it with --adapter --format int4, or train"
            " without method.init"
        )


def read_record(folder: Path) -> dict[str, Any]:
    """What was written about a compressed base; {} where that is missing or unreadable."""
    try:
        values: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values


def cache_folder() -> Path:
    """Where compressed bases are kept."""
    return user_cache("int4")
