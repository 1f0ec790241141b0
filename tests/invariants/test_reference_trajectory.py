"""Losses do not drift over versions: a run through the CLI repeats the committed ones."""

import json

import pytest
from invariants.reference_trajectory import FILE, STEPS, trajectory

# A CPU with other instructions adds in another order: about 1e-6, and it grows from step to step.
TOLERANCE = 2e-4


def test_the_losses_are_those_of_earlier_versions(tmp_path) -> None:
    committed = json.loads(FILE.read_text(encoding="utf-8"))["loss"]
    assert len(committed) == STEPS
    assert committed[-1] < 0.9 * committed[0]  # it learns, so that the optimizer is compared, too
    assert trajectory(tmp_path) == pytest.approx(committed, rel=TOLERANCE)
