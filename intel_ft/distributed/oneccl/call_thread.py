"""The one thread that calls oneCCL, one call after another; called from oneccl.group.

oneCCL's communicators must not be used from two threads at once (its flow control breaks), so all
groups share it, and calls are made in the order in which they were asked for. As with NCCL, ranks
that share several groups must ask in the same order.
"""

import queue
import threading
import time
from collections.abc import Callable
from functools import cache
from typing import Any

from torch.futures import Future

_WATCH_SECONDS = 0.2


class Call:
    """What to do and by when; then what came of it. `describe` names it in an error.

    torch's Future is made for those who ask for it: it takes as long as a wake-up of the thread.
    """

    def __init__(self, describe: str, seconds: float, action: Callable[[], Any]) -> None:
        self.describe, self.seconds, self.action = describe, seconds, action
        self.began = 0.0
        self._result: Any = None
        self._error: Exception | None = None
        self._running = threading.Lock()  # held until it is done
        self._running.acquire()
        self._guard = threading.Lock()
        self._future: Future[Any] | None = None
        self._done = False

    def wait(self) -> Any:
        """Its result, once it is done; raises what it failed with."""
        with self._running:
            pass
        if self._error is not None:
            raise self._error
        return self._result

    def is_done(self) -> bool:
        """Whether it is done, or has failed."""
        return self._done

    def future(self) -> "Future[Any]":
        """Its result, for callbacks."""
        with self._guard:
            if self._future is not None:
                return self._future
            future = self._future = Future()
            if not self._done:
                return future
        self._tell(future)
        return future

    def finish(self, result: Any, error: Exception | None) -> None:
        """Say what came of it."""
        with self._guard:
            self._result, self._error, self._done = result, error, True
            future = self._future
        self._running.release()
        if future is not None:
            self._tell(future)

    def _tell(self, future: "Future[Any]") -> None:
        if self._error is None:
            future.set_result(self._result)
        else:
            future.set_exception(self._error)


class Caller:
    """Makes calls in order.

    oneCCL cannot take a call back. One that is not done in time fails, and so does every other from
    then on, with the same error.
    """

    def __init__(self) -> None:
        self.broken: str | None = None
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._current: Call | None = None
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._worker = threading.Thread(target=self._work, name="oneccl", daemon=True)
        self._watcher = threading.Thread(target=self._watch, name="oneccl-watch", daemon=True)
        self._worker.start()
        self._watcher.start()

    def stop(self) -> None:
        """End the threads: one that frees a tensor while Python ends would crash it. Not when
        broken.
        """
        self._calls.put(None)
        self._stopped.set()
        self._worker.join()
        self._watcher.join()

    def submit(self, describe: str, seconds: float, action: Callable[[], Any]) -> Call:
        """Ask for a call that may take `seconds`; it fails with RuntimeError if it takes longer."""
        call = Call(describe, seconds, action)
        with self._lock:
            if self.broken is None:
                self._calls.put(call)
                return call
        call.finish(None, RuntimeError(self.broken))
        return call

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call.began = time.monotonic()
            self._current = call
            result, error = None, None
            try:
                result = call.action()
            except Exception as raised:
                error = raised
            with self._lock:
                if self.broken is not None:
                    return  # too late: the asker has been told
                self._current = None
            call.finish(result, error)
            del call, result, error  # no tensor is kept until the next call

    def _watch(self) -> None:
        while self.broken is None and not self._stopped.wait(_WATCH_SECONDS):
            self._fail_overdue()

    def _fail_overdue(self) -> None:
        with self._lock:
            call = self._current
            if call is None or time.monotonic() - call.began < call.seconds:
                return
            self.broken = (
                f"oneCCL: {call.describe} was not done after {call.seconds:g} s: another rank "
                "has stopped, or asks for something else"
            )
        call.finish(None, RuntimeError(self.broken))
        while not self._calls.empty():
            if (waiting := self._calls.get()) is not None:
                waiting.finish(None, RuntimeError(self.broken))


@cache
def caller() -> Caller:
    """This process's one."""
    return Caller()
