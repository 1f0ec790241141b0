"""Numbers with their nouns and signs, as messages and tables print them."""

import pytest

from intel_ft.plurals import count_of, rough_time, signed


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 ranks"),
        (1, "1 rank"),
        (1.0, "1 rank"),
        (0.5, "0.5 ranks"),
        (1.5, "1.5 ranks"),
        (1200, "1,200 ranks"),
    ],
)
def test_one_is_singular(number, text) -> None:
    assert count_of(number, "rank") == text
    assert count_of(2, "process", "processes") == "2 processes"


def test_zero_has_no_sign() -> None:
    assert [signed(x) for x in (-0.04, 0.04, 0.0, -0.06, 1.26)] == [
        "0.0",
        "0.0",
        "0.0",
        "-0.1",
        "+1.3",
    ]
    assert signed(-0.004, 2) == "0.00" and signed(-0.006, 2) == "-0.01"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (90, "90 s"), (91, "2 min")])
def test_what_is_left_is_rounded(seconds, text) -> None:
    assert rough_time(seconds) == text
