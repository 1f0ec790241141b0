"""What every test shares: hypothesis settings, seeded random weights, less garbage collection."""

import gc
import logging
import os
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

from intel_ft.optional_packages import import_peft

# A shared machine makes single examples slow; how long a test may take is pytest-timeout's to say.
# The examples of a test are the same in every run: what fails here fails for whoever tries it.
settings.register_profile("shared-machine", deadline=None, derandomize=True)
settings.load_profile("shared-machine")

gc.disable()  # while the tests and all that they import are collected


_MANY_MODULES = 300
_modules_frozen = 0


def pytest_configure():
    """In a worker, which imports peft in any case, leave out what nothing uses: seconds."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        import_peft()


def pytest_collection_finish():
    """End the pause of the garbage collection."""
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Random weights and captured logs are the same whichever tests ran before.

    That holds for fixtures, too. An export's libraries raise the levels of the root logger and of
    its handlers, pytest's among them, to ERROR; the command line sets that of our own logger.
    """
    _freeze_modules()
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)
    logging.disable(logging.NOTSET)
    logging.getLogger("intel_ft").setLevel(logging.NOTSET)
    logging.getLogger().setLevel(logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.setLevel(logging.NOTSET)


def _freeze_modules():
    """Never visit again, in any garbage collection, what was imported for the tests so far."""
    global _modules_frozen  # noqa: PLW0603 it lasts as long as the test process
    if len(sys.modules) > _modules_frozen + _MANY_MODULES:
        gc.collect()
        gc.freeze()
        _modules_frozen = len(sys.modules)


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
