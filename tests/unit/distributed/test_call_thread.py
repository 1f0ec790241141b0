"""The thread that calls oneCCL: what it leaves behind. No library is needed for it."""

import threading
import time
import weakref

from intel_ft.distributed.oneccl import call_thread


def test_no_thread_outlives_stop():
    before = set(threading.enumerate())
    caller = call_thread.Caller()
    assert caller.submit("a call", 5, lambda: 7).wait() == 7
    caller.stop()
    assert set(threading.enumerate()) <= before  # which others may have left meanwhile


def test_a_call_that_was_watched_is_let_go_once_it_is_done(monkeypatch):
    """A thread that frees a tensor while Python ends takes the process with it."""
    monkeypatch.setattr(call_thread, "_WATCH_SECONDS", 2)
    caller = call_thread.Caller()
    future = caller.submit("a slow call", 9, lambda: time.sleep(2.1))
    future.wait()
    let_go = weakref.ref(future)
    del future
    for _ in range(100):  # no longer than until the next look
        if let_go() is None:
            break
        time.sleep(0.01)
    assert let_go() is None
    caller.stop()
