"""Write an output folder atomically, and keep library output off stdout."""

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from intel_ft.files import explain_full_disk, require_absent_or_empty, whole_folder

RERUN = "run the command again (no partial output was left)"


@contextlib.contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Yield a folder to fill; it is named `output` only once it is complete and flushed.

    Raises UserError if `output` is not empty, IntelFTError if the disk is full.
    """
    require_absent_or_empty(output, "choose another output, or remove it first")
    with explain_full_disk(output, RERUN), whole_folder(output) as partial:
        yield partial


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Redirect stdout to stderr; suppress warnings and progress bars of libraries.

    NNCF (3.4) logs and draws on stdout through a stream that it took at import, so the file
    descriptor itself is replaced: for the whole process, until the block ends.
    """
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    sys.stdout.flush()
    stdout = os.dup(1)
    try:
        os.dup2(2, 1)
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")  # dozens of torch.jit.TracerWarning
            yield
    finally:
        sys.stdout.flush()
        os.dup2(stdout, 1)
        os.close(stdout)
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
