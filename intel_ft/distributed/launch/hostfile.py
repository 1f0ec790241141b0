"""Reading a host file: the hosts of a run, and the number of ranks on each.

The formats: PBS_NODEFILE, mpirun(1) of Open MPI (`name slots=2`) and Hydra's `name:2`. What would
be read in another way than its author meant is refused.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from intel_ft.errors import UserError

_NAME = re.compile(r"\w[\w.-]*")
_ATTRIBUTE = re.compile(r"([\w-]+)=(\S*)")
_MAX_SLOTS = ("max_slots", "max-slots")  # Open MPI's limit for oversubscription


class _Line(NamedTuple):
    """One host of the file. slots: None where the line has no number of ranks."""

    number: int
    name: str
    slots: int | None


def read_hostfile(path: Path) -> tuple[tuple[str, ...], int | None]:
    """The hosts of a file, and the ranks per host if the file has them.

    Lines are `name`, `name:2` or `name slots=2`; a host on two lines without a number gets two
    ranks (as in PBS_NODEFILE). Raises UserError.
    """
    try:
        texts = path.read_text(encoding="utf-8-sig").splitlines()  # -sig: without an editor's BOM
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the host file cannot be read ({error})") from None
    lines: dict[str, _Line] = {}
    slots: dict[str, int] = {}
    for line in _lines(path, texts):
        first = lines.setdefault(line.name.lower(), line)  # host names are case-insensitive
        if first is not line and (first.slots or line.slots):
            raise UserError(
                f"{path}: {line.name} is on lines {first.number} and {line.number} with a "
                "number of ranks: give each host one line"
            )
        slots[first.name] = slots.get(first.name, 0) + (line.slots or 1)
    if not slots:
        raise UserError(f"{path}: the host file names no host")
    if len(slots) > 1 and (loopback := next(filter(_is_loopback, slots), None)):
        raise UserError(
            f"{path}, line {lines[loopback.lower()].number}: every host calls itself {loopback}: "
            "with several hosts, write the name by which the others reach it"
        )
    if len(set(slots.values())) > 1:
        uneven = ", ".join(f"{host} {count}" for host, count in slots.items())
        raise UserError(f"{path}: give every host the same number of ranks ({uneven[:200]})")
    counted = any(line.slots or slots[line.name] > 1 for line in lines.values())
    return tuple(slots), next(iter(slots.values())) if counted else None


def _lines(path: Path, texts: list[str]) -> Iterator[_Line]:
    for number, text in enumerate(texts, 1):
        if words := text.partition("#")[0].split():
            try:
                yield _Line(number, *_host(*words))
            except ValueError as error:
                raise UserError(f"{path}, line {number}: {error}") from None


def _host(first: str, *words: str) -> tuple[str, int | None]:
    """The name and number of ranks of a line. Raises ValueError with the fact and the remedy."""
    name, _, after_colon = first.partition(":")
    if "@" in first:
        raise ValueError(
            f"{first!r} names a user, which not every launcher passes on: write only the host, and"
            " put its User into ~/.ssh/config"
        )
    if first.startswith("[") or first.count(":") > 1:
        raise ValueError(
            f"{first!r} is an IPv6 address, which not every launcher reads: write a host name or "
            "an IPv4 address"
        )
    if "[" in first:
        raise ValueError(
            f"{first!r} is a list of hosts: write one on each line, as `scontrol show hostnames "
            "LIST` prints them"
        )
    if not _NAME.fullmatch(name):
        raise _not_a_host(" ".join((first, *words)))
    values = [_count(first, after_colon)] if after_colon or first.endswith(":") else []
    most: list[int] = []
    for word in words:
        match = _ATTRIBUTE.fullmatch(word)
        if match is None:
            raise _not_a_host(" ".join((first, *words)))
        if match[1] == "slots":
            values.append(_count(word, match[2]))
        elif match[1] in _MAX_SLOTS:
            most.append(_count(word, match[2]))
        else:
            raise ValueError(f"{word!r} is not supported: a host may have slots= and max_slots=")
    if len(set(values)) > 1 or any(value > limit for value in values for limit in most):
        raise ValueError(f"{' '.join((first, *words))!r} contradicts itself: give one number")
    return name, values[0] if values else None


def _count(word: str, digits: str) -> int:
    if not digits.removeprefix("-").isdecimal():
        raise ValueError(f"{word!r}: {digits!r} is not a number of ranks: write a whole number")
    if digits.startswith("-") or int(digits) == 0:
        raise ValueError(
            f"{word!r}: the number of ranks must be at least 1: leave out a host that gets none"
        )
    return int(digits)


def _not_a_host(text: str) -> ValueError:
    return ValueError(f"{text[:60]!r} is not a host name: write `name`, `name:2` or `name slots=2`")


def _is_loopback(name: str) -> bool:
    return name.startswith("127.") or name.lower().partition(".")[0] == "localhost"
