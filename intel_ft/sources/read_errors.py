"""Finds out why a data file cannot be read, and what to do about it."""

import codecs
import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

from intel_ft.sources.compressed import compression, open_bytes
from intel_ft.sources.csv_header import read_header
from intel_ft.sources.files import inner_type

_SHOWN = 3
_HEAD = 4096  # bytes that are looked at before a file is read
_BINARY = (".parquet", ".arrow")
# The longest mark first: that of UTF-32 starts with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def problem_with(file: Path) -> str | None:
    """What is wrong with `file` and what to do about it; None if no problem is detected.

    Checks access, compression, the encoding and, in JSON, which lines do not parse. Reads the whole
    file, so call it only for files that `datasets` could not read.
    """
    try:
        packed = compression(file)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    try:
        with open_bytes(file) as stream:
            data = stream.read()
    except Exception as error:  # each compression library has its own
        return f"cannot be unpacked ({error}): its {packed} data is damaged: write it again"
    if not data.strip():
        return "is empty: add at least one example"
    kind = inner_type(file)
    if kind == ".parquet":
        whole = data.startswith(b"PAR1") and data.endswith(b"PAR1")
        return None if whole else "is truncated or not a Parquet file: write it again"
    return None if kind in _BINARY else _text_problem(file, data, kind)


def problem_at_start(file: Path) -> str | None:
    """What the first bytes say the file is instead of its type, and what to do; None if nothing.

    UTF-16 without a byte order mark is valid UTF-8 with a NUL beside each character, and the
    pointer that Git LFS leaves in a file's place is text: both could be read as data.
    """
    try:
        with open_bytes(file) as stream:
            head = stream.read(_HEAD)
    except Exception:  # the reader fails on it, too, and then `problem_with` says why
        return None
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the data: run `git lfs pull`"
    if head.startswith(b"PK\x03\x04"):
        return "is a ZIP archive or an Excel file: unpack it, or save it as CSV"
    kind = inner_type(file)
    if kind != ".txt" and head.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        return "is an HTML page, not data: download the file itself"
    if kind in _BINARY:
        return None
    encoding = next((name for mark, name in _MARKS if head.startswith(mark)), None)
    if encoding is None and len(head) > 1 and head.count(0) * 3 > len(head):
        encoding = "UTF-16LE" if head[1] == 0 else "UTF-16BE"
    return f"is {encoding}: {_convert(encoding)}" if encoding else None


def _convert(encoding: str) -> str:
    return f"convert it to UTF-8, for example with `iconv -f {encoding} -t UTF-8`"


def _text_problem(file: Path, data: bytes, kind: str) -> str | None:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        where = f"line {line} (byte {error.start} of the file) is not UTF-8"
        if not data.decode(errors="ignore").isascii():
            return f"{where}, although other lines are: correct that line"
        # Windows' encodings have letters and quotes where Latin 1 has control characters.
        windows = re.search(rb"[\x80-\x9f]", data) is not None
        return f"{where}: {_convert('WINDOWS-1252' if windows else 'LATIN1')}"
    if kind in (".json", ".jsonl", ".ndjson"):
        return _json_problem(text)
    return _csv_problem(file, text) if kind in (".csv", ".tsv") else None


def _json_problem(text: str) -> str | None:
    if text.lstrip().startswith("["):
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            return f"line {error.lineno} is invalid JSON ({error.msg}): correct that line"
        for number, row in enumerate(value, start=1):
            if not isinstance(row, dict | str):
                return f"row {number} is not a JSON object with named columns: {_short(row)}"
        return _surrogate_problem(text)
    problems = []
    count = 0
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        count += 1
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append(f"line {number} is invalid JSON ({error.msg})")
        else:
            if not isinstance(row, dict):
                what = f"is not a JSON object with named columns: {_short(row)}"
                problems.append(f"line {number} {what}")
    return _counted(problems, count) if problems else _surrogate_problem(text)


def _counted(problems: Sequence[str], lines: int) -> str:
    """The first few problems, and how many there are."""
    if len(problems) == 1:
        return f"{problems[0]}: correct that line"
    more = ", ..." if len(problems) > _SHOWN else ""
    return (
        f"{', '.join(problems[:_SHOWN])}{more}: {len(problems):,} of {lines:,} lines are bad:"
        " correct them"
    )


def _surrogate_problem(text: str) -> str | None:
    """A lone \\ud800-style escape: Python's json accepts it, but it is not valid text."""
    for number, line in enumerate(text.split("\n"), start=1):
        if "\\ud" in line.lower():
            try:
                json.dumps(json.loads(line), ensure_ascii=False).encode()
            except UnicodeEncodeError:
                return f"line {number} has half of a surrogate pair (\\ud8..): remove that escape"
            except json.JSONDecodeError:
                continue
    return None


def _csv_problem(file: Path, text: str) -> str | None:
    separator, header = read_header(file)
    if len(set(header)) < len(header):
        return "line 1 has two columns of the same name: rename one"
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    problems = [
        f"line {reader.line_num} has {len(cells)} cells"
        for cells in reader
        if len(cells) > len(header)
    ]
    if not problems:
        return None
    more = ", ..." if len(problems) > _SHOWN else ""
    return (
        f"{', '.join(problems[:_SHOWN])}{more}, but the header has {len(header)} columns"
        f" ({len(problems):,} such lines): put quotes around cells that contain the separator"
        f" {separator!r}"
    )


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."
