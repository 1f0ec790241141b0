"""The values of a sweep, parsed from the command line."""

from intel_ft.errors import UserError


def whole_numbers(text: str, example: str) -> list[int]:
    """Parse comma-separated whole numbers above 0; the result is sorted and unique.

    Raises UserError, which shows `example`.
    """
    try:
        values = sorted({int(value) for value in text.split(",")})
    except ValueError:
        raise UserError(f"--values {text}: expected whole numbers, such as {example}") from None
    if values[0] < 1:
        raise UserError(f"--values {text}: every value must be above 0, got {values[0]}")
    return values
