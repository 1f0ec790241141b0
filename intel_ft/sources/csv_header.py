"""The header of a CSV file, and the character that separates its cells."""

import csv
import io
from pathlib import Path

from intel_ft.sources.compressed import open_bytes

_OTHER_SEPARATORS = (";", "\t", "|")


def read_header(file: Path) -> tuple[str, list[str]]:
    """The separator and the column names.

    The separator is a comma, or else the one of semicolon, tab and vertical bar that cuts the
    header into the most columns; in a .tsv file it is a tab.
    """
    with open_bytes(file) as data, io.TextIOWrapper(data, "utf-8-sig", newline="") as text:
        line = _first_record(text)
    if ".tsv" in [suffix.lower() for suffix in file.suffixes[-2:]]:
        return "\t", _cells(line, "\t")
    names = _cells(line, ",")
    separator = ","
    if len(names) == 1:
        for other in _OTHER_SEPARATORS:
            if len(cells := _cells(line, other)) > len(names):
                separator, names = other, cells
    return separator, names


def _first_record(text: io.TextIOWrapper) -> str:
    """The first line, with those that follow while a quote is open."""
    record = ""
    for line in text:
        record += line
        if record.count('"') % 2 == 0:
            break
    return record


def _cells(record: str, separator: str) -> list[str]:
    return next(csv.reader(io.StringIO(record, newline=""), delimiter=separator), [])
