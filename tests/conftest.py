"""What every test shares: hypothesis settings, and seeded random weights."""

import sys

import pytest
from hypothesis import settings

# A shared machine makes single examples slow; how long a test may take is pytest-timeout's to say.
# The examples of a test are the same in every run: what fails here fails for whoever tries it.
settings.register_profile("shared-machine", deadline=None, derandomize=True)
settings.load_profile("shared-machine")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Random weights are the same whichever tests ran before, those of fixtures, too."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)
