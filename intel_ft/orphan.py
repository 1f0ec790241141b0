"""Child processes that end when their parent ends."""

import ctypes
import signal

_PR_SET_PDEATHSIG = 1  # prctl(2)


def end_with_parent() -> None:
    """Have the kernel send this process SIGTERM when the thread that started it ends.

    This holds however the parent ends. Used as a `preexec_fn`, it also covers a launcher, which
    then ends its ranks.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
