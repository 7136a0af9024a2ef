"""Set-up of all tests: default signals, and no network."""

import os
import signal

# The hub's library reads it when it is imported. Asked without a network, it tries again for most of a minute.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Where pytest runs under nohup it ignores SIGHUP, and what it starts would, too.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
