"""The process of the command ``toklip``."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType

_SECONDS_BETWEEN_TRIES = 0.05


def run() -> None:
    """Run the command in a process of its own, where large libraries are initialised when they are used.

    Ctrl-C is one line and status 130 also while modules are imported, and a second time while the command ends.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and not ignored, as in the background
        signal.signal(signal.SIGINT, _interrupt)
    try:
        from toklip_core.cli.deferral import defer_packages
        from toklip_core.cli.main import cli

        defer_packages()
        cli()
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, as soon as no module is being imported.

    A module that tries an import and goes on without it swallows the exception there, and some that are written in C++
    abort.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            again = threading.Timer(_SECONDS_BETWEEN_TRIES, _interrupt_again)
            again.daemon = True
            again.start()
            return
        frame = frame.f_back
    raise KeyboardInterrupt


def _interrupt_again() -> None:
    if sys.platform == "win32":
        signal.raise_signal(signal.SIGINT)
    else:  # to the main thread, which may be waiting
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
