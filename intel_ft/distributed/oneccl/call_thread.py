"""Single thread that serializes oneCCL calls.

oneCCL's communicators must not be used from two threads at once (its flow control breaks). So all
process groups share this thread, which makes the calls in the order of submission. As with NCCL,
ranks that share several groups must submit in the same order, and so only one thread may submit.
"""

import queue
import threading
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.futures import Future

_WATCH_SECONDS = 0.2


class Call:
    """An action with its time limit, later its result. `describe` names it in an error.

    torch's Future is created only on request: that takes as long as waking up the thread.
    """

    def __init__(self, describe: str, seconds: float, action: Callable[[], Any]) -> None:
        self.describe, self.seconds, self.action = describe, seconds, action
        self.began = 0.0
        self.error: Exception | None = None
        self._result: Any = None
        self._running = threading.Lock()  # held until it is done
        self._running.acquire()
        self._guard = threading.Lock()
        self._future: Future[Any] | None = None
        self._done = False

    @classmethod
    def done(cls, describe: str, action: Callable[[], Any]) -> "Call":
        """A call that the current thread makes itself, at once."""
        call = cls(describe, 0, action)
        try:
            with torch.no_grad():
                call.finish(action(), None)
        except Exception as error:
            call.finish(None, error)
        return call

    def wait(self, seconds: float = -1) -> Any:
        """Wait for the result; raises the error of a failed call, or if the time has passed."""
        if not self._running.acquire(timeout=seconds if seconds > 0 else -1):
            raise RuntimeError(f"oneCCL: {self.describe} did not finish within {seconds:g} s")
        self._running.release()
        if self.error is not None:
            raise self.error
        return self._result

    def is_done(self) -> bool:
        """Whether it has finished or failed."""
        return self._done

    def future(self) -> "Future[Any]":
        """The result as a future, for callbacks."""
        with self._guard:
            if self._future is not None:
                return self._future
            future = self._future = Future()
            if not self._done:
                return future
        self._resolve(future)
        return future

    def finish(self, result: Any, error: Exception | None) -> None:
        """Set the result or the error."""
        with self._guard:
            self._result, self.error, self._done = result, error, True
            future = self._future
        self._running.release()
        if future is not None:
            self._resolve(future)

    def _resolve(self, future: "Future[Any]") -> None:
        if self.error is None:
            future.set_result(self._result)
        else:
            future.set_exception(self.error)


class CallThread:
    """Makes calls in order.

    oneCCL cannot cancel a call. So one that does not finish in time fails, and every later one
    fails with the same error.
    """

    def __init__(self) -> None:
        self.broken: str | None = None
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._current: Call | None = None
        self._lock = threading.Lock()
        self._creator = threading.get_ident()
        self._stopped = threading.Event()
        self._worker = threading.Thread(target=self._work, name="oneccl", daemon=True)
        self._watcher = threading.Thread(target=self._watch, name="oneccl-watch", daemon=True)
        self._worker.start()
        self._watcher.start()

    def stop(self) -> None:
        """End the threads: one that frees a tensor while Python exits would crash the process.

        Must not be called when broken.
        """
        self._calls.put(None)
        self._stopped.set()
        self._worker.join()
        self._watcher.join()

    def serves_this_thread(self) -> bool:
        """Whether the caller is the thread that created this one, or a callback of a call."""
        return threading.get_ident() in (self._creator, self._worker.ident)

    def submit(self, describe: str, seconds: float, action: Callable[[], Any]) -> Call:
        """Queue a call, which fails with RuntimeError if it takes longer than `seconds`."""
        call = Call(describe, seconds, action)
        with self._lock:
            if self.broken is None:
                self._calls.put(call)
                return call
        call.finish(None, RuntimeError(self.broken))
        return call

    def _work(self) -> None:
        torch.set_grad_enabled(False)  # of this thread: results are also written to parameters
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
                    return  # too late: the call has already failed
                self._current = None
            call.finish(result, error)
            del call, result, error  # else tensors would live until the next call

    def _watch(self) -> None:
        while self.broken is None and not self._stopped.wait(_WATCH_SECONDS):
            self._fail_overdue()

    def _fail_overdue(self) -> None:
        with self._lock:
            call = self._current
            if call is None or time.monotonic() - call.began < call.seconds:
                return
            self.broken = (
                f"oneCCL: {call.describe} did not finish within its timeout of {call.seconds:g} s: "
                "another rank has stopped, or has called a different collective"
            )
        call.finish(None, RuntimeError(self.broken))
        while not self._calls.empty():
            if (waiting := self._calls.get()) is not None:
                waiting.finish(None, RuntimeError(self.broken))


@cache
def call_thread() -> CallThread:
    """The one thread of this process."""
    return CallThread()
