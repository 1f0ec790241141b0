"""Numbers with their nouns in messages and reports."""


def count_of(number: float, noun: str, plural: str | None = None) -> str:
    """`1 rank`, `1,200 ranks`, `0.5 epochs`. plural: of nouns that take more than an s."""
    whole = number == int(number)
    text = f"{int(number):,}" if whole else f"{number:g}"
    return f"{text} {noun if number == 1 else plural or noun + 's'}"
