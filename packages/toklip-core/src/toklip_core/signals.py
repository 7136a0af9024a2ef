"""Ctrl-C and SIGTERM as a question that long work asks between its steps, so that it ends with everything written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Says, when called, whether a signal asked the process to stop."""

    def __init__(self) -> None:
        #: The number of the signal; 0 if none came.
        self.signal = 0

    def __call__(self) -> bool:
        """Whether a signal came."""
        return self.signal != 0

    @property
    def exit_status(self) -> int:
        """What a shell calls the end by this signal: 130 for Ctrl-C, 143 for SIGTERM, 0 for none."""
        return 128 + self.signal if self.signal else 0


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Take SIGINT and SIGTERM as requests while inside; a second one interrupts at once.

    Outside of the main thread, where Python lets nobody take signals, no request ever comes.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if request():
            raise KeyboardInterrupt
        request.signal = number

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
