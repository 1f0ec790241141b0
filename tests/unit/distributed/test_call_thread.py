"""The thread that calls oneCCL leaves no thread and no tensor behind. oneCCL is not needed."""

import threading
import time
import weakref

from intel_ft.distributed.oneccl import call_thread


def test_no_thread_outlives_stop():
    before = set(threading.enumerate())
    caller = call_thread.CallThread()
    assert caller.submit("a call", 5, lambda: 7).wait() == 7
    caller.stop()
    assert set(threading.enumerate()) <= before  # which others may have left meanwhile


def test_a_finished_call_is_released(monkeypatch):
    """A thread that frees a tensor while Python exits would crash the process."""
    monkeypatch.setattr(call_thread, "_WATCH_SECONDS", 2)
    caller = call_thread.CallThread()
    future = caller.submit("a slow call", 9, lambda: time.sleep(2.1))
    future.wait()
    released = weakref.ref(future)
    del future
    for _ in range(100):  # no longer than until the next look
        if released() is None:
            break
        time.sleep(0.01)
    assert released() is None
    caller.stop()
