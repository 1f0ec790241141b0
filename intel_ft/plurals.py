"""Numbers with their nouns in messages and reports."""


def signed(number: float, digits: int = 1) -> str:
    """`+1.5`, `-0.3`, and `0.0` for what is rounded to it, whatever its sign is."""
    text = f"{number:+.{digits}f}"
    return text if float(text) else text[1:]


def rough_time(seconds: float) -> str:
    """`45 s`, `12 min`: how long something still takes."""
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"


def count_of(number: float, noun: str, plural: str | None = None) -> str:
    """`1 rank`, `1,200 ranks`, `0.5 epochs`. plural: of nouns that take more than an s."""
    whole = number == int(number)
    text = f"{int(number):,}" if whole else f"{number:g}"
    return f"{text} {noun if number == 1 else plural or noun + 's'}"
