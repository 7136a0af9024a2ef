"""Set-up of all tests: default signals, and no network."""

import os
import signal

import pytest

# The hub's library reads it when it is imported. Asked without a network, it tries again for most of a minute.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Where pytest runs under nohup it ignores SIGHUP, and what it starts would, too.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True, scope="session")
def modules_without_values_compute_none():
    """Guard every test, also those that load each registered tokenizer."""
    from tests.support.values import refusing_values

    with refusing_values():
        yield
