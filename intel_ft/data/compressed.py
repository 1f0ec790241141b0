"""Opens data files, compressed or not, as bytes."""

import bz2
import gzip
import lzma
import shutil
from pathlib import Path
from typing import IO, Any, cast

from intel_ft.data.files import COMPRESSED


def is_compressed(file: Path) -> bool:
    """Whether the file's name says that it is compressed."""
    return file.suffix.lower() in COMPRESSED


def open_bytes(file: Path) -> IO[bytes]:
    """The file's bytes, unpacked while they are read."""
    suffix = file.suffix.lower()
    if suffix == ".gz":
        return cast(IO[bytes], gzip.open(file))
    if suffix == ".bz2":
        return bz2.open(file)
    if suffix == ".xz":
        return lzma.open(file)
    if suffix == ".zst":
        import pyarrow  # Python has no zstd before 3.14, and `datasets` requires pyarrow

        stream: Any = pyarrow.input_stream(str(file), compression="zstd")
        return cast(IO[bytes], stream)
    return file.open("rb")


def unpack(file: Path, folder: Path) -> Path:
    """The file itself, or an unpacked copy in `folder` if it is compressed."""
    if not is_compressed(file):
        return file.resolve()
    copy = folder / f"{len(list(folder.iterdir()))}-{file.stem}"
    with open_bytes(file) as packed, copy.open("wb") as unpacked:
        shutil.copyfileobj(packed, unpacked, 1 << 20)
    return copy
