"""SIGINT and SIGTERM noted, so that what they stop can save its state first (training, export)."""

import logging
import signal
import threading
from types import FrameType
from typing import Any, Self

logger = logging.getLogger(__name__)


class StopSignal:
    """Notes SIGINT and SIGTERM while it is entered; a second SIGINT interrupts at once.

    received: the first signal's number, None before it; when: when the caller reacts, for the log.
    Python delivers signals to the main thread: entered in another one, this does nothing.
    """

    def __init__(self, level: int = logging.WARNING) -> None:
        self.received: int | None = None
        self.when = "after this step"
        self._level = level
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        name = signal.Signals(number).name
        logger.log(self._level, "%s: saving and stopping %s", name, self.when)
