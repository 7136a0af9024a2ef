"""Signals as requests: long work checks for Ctrl-C, SIGTERM and SIGHUP between its steps, and ends cleanly."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Signals that ask a process to end: Ctrl-C, a scheduler, or a closed terminal or connection; Windows has no SIGHUP.
_ENDS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
# A shell makes a program in the background ignore Ctrl-C, but users may still send SIGINT to it.
_ALWAYS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """A function that returns whether a signal has asked the process to stop."""

    def __init__(self) -> None:
        #: The number of the signal; 0 if none came.
        self.signal = 0

    def __call__(self) -> bool:
        """Return whether a signal came."""
        return self.signal != 0

    @property
    def exit_status(self) -> int:
        """Exit status for this signal: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP; 0 without a signal."""
        return 128 + self.signal if self.signal else 0


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Treat SIGINT, SIGTERM and SIGHUP as requests while inside; Ctrl-C after one of them interrupts at once.

    SIGTERM and SIGHUP may come twice, from a launcher and from the scheduler that signals all processes of a job; the
    second changes nothing. SIGHUP stays ignored if it is, as under nohup. Outside the main thread no request comes,
    because Python handles signals only there.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if request() and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal = request.signal or number

    taken = [n for n in _ENDS if n in _ALWAYS or signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, ask) for number in taken}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held_back() -> Iterator[None]:
    """Block these signals while worker processes start, so that only the parent receives them.

    Workers start with the signals blocked until they call :func:`leave_signals_to_the_parent`.
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
    """Ignore signals that ask for an end, in a worker process.

    A terminal, a scheduler or a closed connection signals the whole group of processes. The parent still needs the
    results of its workers, and ends them itself.
    """
    for number in _ENDS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDS)
