"""What every test shares: hypothesis settings, seeded random weights, less garbage collection."""

import gc
import sys

import pytest
from hypothesis import settings

# A shared machine makes single examples slow; how long a test may take is pytest-timeout's to say.
# The examples of a test are the same in every run: what fails here fails for whoever tries it.
settings.register_profile("shared-machine", deadline=None, derandomize=True)
settings.load_profile("shared-machine")

gc.disable()  # while the tests and all that they import are collected


def pytest_collection_finish():
    """Never visit again, in any garbage collection, what was imported to collect the tests."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Random weights are the same whichever tests ran before, those of fixtures, too."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)
