"""Ctrl-C, SIGTERM and SIGHUP as a question that long work asks between its steps, to end with everything written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# What asks a process for its end: Ctrl-C, a scheduler, a terminal or a connection that ends. Windows has no SIGHUP.
_ENDS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
# A shell that starts a program in the background has it ignore Ctrl-C, and may well send SIGINT by itself.
_ALWAYS = (signal.SIGINT, signal.SIGTERM)


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
        """What a shell calls the end by this signal: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP; else 0."""
        return 128 + self.signal if self.signal else 0


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Take SIGINT, SIGTERM and SIGHUP as requests while inside; a second one interrupts at once.

    SIGHUP is left alone where it is ignored, as nohup has it. Outside of the main thread, where Python lets nobody take
    signals, no request ever comes.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if request():
            raise KeyboardInterrupt
        request.signal = number

    taken = [n for n in _ENDS if n in _ALWAYS or signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, ask) for number in taken}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held_back() -> Iterator[None]:
    """Let signals that ask for an end wait while worker processes start: they come to the parent alone.

    The workers start with the signals held back, too, until they call :func:`leave_signals_to_the_parent`.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_the_parent() -> None:
    """Ignore, in a worker process, what asks for an end.

    A terminal, a scheduler or a closed connection asks the whole group of processes: the parent finishes with what its
    workers still send, and ends them itself.
    """
    for number in _ENDS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDS)
