"""Where merge and export write: a folder that is whole or absent, and silence on stdout; called
from export.
"""

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
    """Yield a folder to fill, named `output` only once it is whole and on disk.

    Raises UserError if `output` holds anything, IntelFTError if the disk is full.
    """
    require_absent_or_empty(output, "choose another output, or remove it first")
    with explain_full_disk(output, RERUN), whole_folder(output) as partial:
        yield partial


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Send what libraries print on stdout to stderr, and drop their warnings and progress bars.

    NNCF logs and draws on stdout (3.4), through a stream it took when it was imported, hence the
    exchange of the file descriptor itself; it holds for the whole process while it lasts.
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
            warnings.simplefilter("ignore")  # torch.jit.TracerWarning by the dozen
            yield
    finally:
        sys.stdout.flush()
        os.dup2(stdout, 1)
        os.close(stdout)
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
