"""The SVG plot: well-formed, and its points are where the values say."""

from xml.etree import ElementTree

import pytest

from intel_ft.plot import line_plot, tick_step

SVG = "{http://www.w3.org/2000/svg}"


def _points(svg):
    root = ElementTree.fromstring(svg)
    drawn = [line.get("points").split() for line in root.iter(f"{SVG}polyline")]
    return [[tuple(map(float, point.split(","))) for point in line] for line in drawn]


def test_the_x_axis_is_logarithmic_and_y_starts_at_zero():
    svg = line_plot("a & b", "rows <x>", [1, 2, 8], {"token/s": [100, 200, 400], "MFU": [0, 1, 1]})
    rate, mfu = _points(svg)
    x = [point[0] for point in rate]
    assert x == [point[0] for point in mfu]
    assert (x[2] - x[0]) == pytest.approx(3 * (x[1] - x[0]), abs=0.2)
    top, zero = rate[2][1], mfu[0][1] - (mfu[1][1] - rate[2][1])
    assert top < rate[1][1] < rate[0][1] < zero
    assert (zero - rate[0][1]) * 4 == pytest.approx(zero - top, abs=0.5)  # 100 of 400
    texts = [text.text for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert {"a & b", "rows <x>", "token/s", "MFU", "1", "2", "8", "0", "400", "0.25"} <= set(texts)


def test_one_point_and_zeros_can_be_drawn():
    ((only,),) = _points(line_plot("t", "x", [4], {"y": [0.0]}))
    assert only[0] > 0


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(ValueError, match="every x"):
        line_plot("t", "x", [1, 2], {"y": [1.0]})
    with pytest.raises(ValueError, match="at least one"):
        line_plot("t", "x", [], {"y": []})


@pytest.mark.parametrize(
    ("most", "step"),
    [(400, 100), (401, 200), (0.9, 0.25), (1.0, 0.25), (3999, 1000), (8, 2), (0.07, 0.02)],
)
def test_ticks_are_round_and_reach_the_top(most, step):
    assert tick_step(most, 4) == pytest.approx(step)
