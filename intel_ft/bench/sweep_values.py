"""The values of a sweep, as the command line has them; called from insight's benches and plan."""

from intel_ft.errors import UserError


def whole_numbers(text: str, example: str) -> list[int]:
    """Comma-separated whole numbers above 0, sorted, each once. Raises UserError, with `example`
    for how to write them.
    """
    try:
        values = sorted({int(value) for value in text.split(",")})
    except ValueError:
        raise UserError(f"--values {text}: write whole numbers, as {example}") from None
    if values[0] < 1:
        raise UserError(f"--values {text}: {values[0]} is not above 0")
    return values
