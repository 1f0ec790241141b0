"""Finds out why a data file cannot be read, and what to do about it."""

import csv
import io
import json
from pathlib import Path


def problem_with(file: Path) -> str | None:
    """What is wrong with `file` and what to do about it; None if no problem is detected.

    Checks access, the encoding and, in JSON, the first line that does not parse. Reads the whole
    file, so call it only for files that `datasets` could not read.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if not data.strip():
        return "is empty: add at least one example"
    kind = file.suffix.lower()
    return _parquet_problem(data) if kind == ".parquet" else _text_problem(data, kind)


def _parquet_problem(data: bytes) -> str | None:
    whole = data.startswith(b"PAR1") and data.endswith(b"PAR1")
    return None if whole else "is truncated or not a Parquet file: write it again"


def _text_problem(data: bytes, kind: str) -> str | None:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return (
            f"line {line} (byte {error.start} of the file) is not UTF-8: convert the file to UTF-8,"
            " for example with `iconv -f LATIN1 -t UTF-8`"
        )
    if kind in (".json", ".jsonl"):
        return _json_problem(text)
    if kind == ".csv":
        return _csv_problem(text)
    return None


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
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            return f"line {number} is invalid JSON ({error.msg}): correct that line"
        if not isinstance(row, dict):
            return f"line {number} is not a JSON object with named columns: {_short(row)}"
    return _surrogate_problem(text)


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


def _csv_problem(text: str) -> str | None:
    reader = csv.reader(io.StringIO(text, newline=""))
    header = next(reader, [])
    if len(set(header)) < len(header):
        return "line 1 has two columns of the same name: rename one"
    for cells in reader:
        if len(cells) > len(header):
            return (
                f"line {reader.line_num} has {len(cells)} cells, but the header has {len(header)}"
                " columns: put quotes around cells that contain a comma"
            )
    return None


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."
