"""Processes that do not outlive the one that started them; called from distributed and insight."""

import ctypes
import signal

_PR_SET_PDEATHSIG = 1  # prctl(2)


def end_with_parent() -> None:
    """Have the kernel end this process by SIGTERM when the thread that started it ends, however it
    does. As a `preexec_fn` it is for a launcher, too, which ends its ranks then.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
