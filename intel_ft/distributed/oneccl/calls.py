"""The one thread that calls oneCCL, one call after another; called from oneccl.group.

oneCCL's communicators must not be used from two threads at once (its flow control breaks), so all
groups share it, and calls are made in the order in which they were asked for. As with NCCL, ranks
that share several groups must ask in the same order.
"""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from torch.futures import Future

_WATCH_SECONDS = 0.2


@dataclass(eq=False)
class _Call:
    """What to do, by when, and where the answer goes. `describe` names it in an error."""

    describe: str
    seconds: float
    action: Callable[[], Any]
    future: "Future[Any]" = field(default_factory=Future)
    began: float = 0.0


class Caller:
    """Makes calls in order and gives futures of their results.

    oneCCL cannot take a call back. One that is not done in time fails, and so does every other from
    then on, with the same error.
    """

    def __init__(self) -> None:
        self.broken: str | None = None
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._current: _Call | None = None
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

    def submit(self, describe: str, seconds: float, action: Callable[[], Any]) -> "Future[Any]":
        """Ask for a call that may take `seconds`; the future has its result, or RuntimeError."""
        call = _Call(describe, seconds, action)
        with self._lock:
            if self.broken is None:
                self._calls.put(call)
                return call.future
        call.future.set_exception(RuntimeError(self.broken))
        return call.future

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
            if error is None:
                call.future.set_result(result)
            else:
                call.future.set_exception(error)
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
        call.future.set_exception(RuntimeError(self.broken))
        while not self._calls.empty():
            if (waiting := self._calls.get()) is not None:
                waiting.future.set_exception(RuntimeError(self.broken))


@cache
def caller() -> Caller:
    """This process's one."""
    return Caller()
