"""Signals of all tests: where pytest runs under nohup it ignores SIGHUP, and what it starts would, too."""

import signal

if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
