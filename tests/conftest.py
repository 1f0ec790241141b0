"""What every test shares: hypothesis settings, seeded random weights, less garbage collection."""

import gc
import sys
from pathlib import Path

import pytest
from filelock import FileLock
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


@pytest.fixture(scope="session")
def page_base(tmp_path_factory, worker_id) -> Path:
    """The folder of a base model that has memorized a page of Python; tests only read it.

    It is made once for all workers.
    """
    from support.export_fixtures import make_base

    root = tmp_path_factory.getbasetemp()
    root = root if worker_id == "master" else root.parent
    folder = root / "page" / "base"
    with FileLock(root / "page.lock"):
        if not folder.exists():
            folder.parent.mkdir()
            make_base(folder.with_name("partial")).rename(folder)
    return folder
