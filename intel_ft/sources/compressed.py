"""Opens data files, compressed or not, as bytes. Their first bytes decide, not their names."""

import bz2
import glob
import gzip
import lzma
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

from intel_ft.sources.files import COMPRESSED


def compression(file: Path) -> str | None:
    """How the file is compressed: `gzip`, `bzip2`, `xz` or `zstd`; None if it is not."""
    with file.open("rb") as stream:
        head = stream.read(10)
    return next((name for name, (magic, _) in _FORMATS.items() if head.startswith(magic)), None)


def open_bytes(file: Path) -> IO[bytes]:
    """The file's bytes, unpacked while they are read."""
    name = compression(file)
    return file.open("rb") if name is None else cast(IO[bytes], _FORMATS[name][1](file))


def unpack(file: Path, folder: Path) -> Path:
    """A plain file with the data: in `folder` if `file` is compressed or named as if it were.

    Also if its path has characters of a pattern, which `datasets` would take for one.
    """
    packed = compression(file) is not None
    whole = file.resolve()
    if not packed and file.suffix.lower() not in COMPRESSED and not glob.has_magic(str(whole)):
        return whole
    name = re.sub(r"[*?\[\]]", "_", file.stem)
    copy = folder / f"{len(list(folder.iterdir()))}-{name}"
    if not packed:
        copy.symlink_to(file.resolve())
        return copy
    with open_bytes(file) as data, copy.open("wb") as unpacked:
        shutil.copyfileobj(data, unpacked, 1 << 20)
    return copy


def _open_zstd(file: Path) -> Any:
    # Python has no zstd before 3.14, and `datasets` requires pyarrow.
    import pyarrow  # type: ignore[import-untyped]

    return pyarrow.input_stream(str(file), compression="zstd")


_FORMATS: dict[str, tuple[tuple[bytes, ...], Callable[[Path], Any]]] = {
    "gzip": ((b"\x1f\x8b",), gzip.open),
    "bzip2": (tuple(b"BZh%d1AY&SY" % level for level in range(1, 10)), bz2.open),
    "xz": ((b"\xfd7zXZ\x00",), lzma.open),
    "zstd": ((b"\x28\xb5\x2f\xfd",), _open_zstd),
}
