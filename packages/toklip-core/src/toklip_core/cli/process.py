"""The process of the command ``toklip``."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType

_STATUS = 128 + signal.SIGINT
#: Seconds between two looks whether an import has ended, and after which a second Ctrl-C does not wait for that.
_LOOK, _PATIENCE = 0.05, 1.0


def run() -> None:
    """Run the command in a process of its own, where large libraries are initialised when they are used.

    Ctrl-C is one line and status 130 also while modules are imported, and a second time while the command ends.
    """
    interrupt = _Interrupt()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and not ignored, as in the background
        signal.signal(signal.SIGINT, interrupt)
    try:
        from toklip_core.cli.deferral import defer_packages
        from toklip_core.cli.main import cli

        defer_packages()
        cli()
        if not interrupt.waits:
            return
    except KeyboardInterrupt:
        pass
    except SystemExit:
        if not interrupt.waits:
            raise
    print("Interrupted.", file=sys.stderr)
    sys.exit(_STATUS)


class _Interrupt:
    """Handler of SIGINT that raises KeyboardInterrupt, but not while a module is imported.

    A module that tries an import and goes on without it swallows the exception there, and some that are written in C++
    abort. So it is raised after the import. A second Ctrl-C ends an import that hangs.
    """

    def __init__(self) -> None:
        #: Whether an interrupt waits for the end of an import.
        self.waits = False
        self._since = 0.0
        #: Whether the next signal is the one that waited, and not another Ctrl-C.
        self._is_repeated = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        is_repeated, self._is_repeated = self._is_repeated, False
        if not _imports(frame):
            self.waits = False
            raise KeyboardInterrupt
        if not self.waits:
            self.waits, self._since = True, time.monotonic()
            threading.Thread(target=self._repeat, daemon=True).start()
        elif not is_repeated and time.monotonic() - self._since > _PATIENCE:
            os.write(2, b"Interrupted.\n")
            os._exit(_STATUS)

    def _repeat(self) -> None:
        """Send the signal again when the import has ended."""
        main = threading.main_thread().ident or 0
        while self.waits:
            time.sleep(_LOOK)
            if self.waits and not _imports(sys._current_frames().get(main)):
                self._is_repeated = True
                self.waits = signal.getsignal(signal.SIGINT) is self  # else it is another's, who must get it once
                if sys.platform == "win32":
                    signal.raise_signal(signal.SIGINT)
                else:  # to the main thread, which may be waiting
                    signal.pthread_kill(main, signal.SIGINT)


def _imports(frame: FrameType | None) -> bool:
    """Return whether a module is being imported in a frame or in one that called it."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
