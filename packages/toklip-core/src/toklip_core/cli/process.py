"""The process of the command ``toklip``."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def run() -> None:
    """Run the command in a process of its own, where large libraries are initialised when they are used.

    Ctrl-C is one line and status 130 also while the command is being imported, and a second time while it ends.
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
    """Raise KeyboardInterrupt, or end the process while it imports a module.

    Modules that try an import and go on without it swallow the exception there, and some that are written in C++ abort.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, b"Interrupted.\n")
            os._exit(128 + number)
        frame = frame.f_back
    raise KeyboardInterrupt
