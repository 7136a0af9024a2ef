"""Signals that stop long work: Ctrl-C, SIGTERM, and the end of a terminal."""

import os
import signal

import pytest
from toklip_core.training import stop_on_signals


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_is_a_request_and_ctrl_c_after_it_interrupts(number, status):
    before = signal.getsignal(number)
    with stop_on_signals() as request:
        assert not request()
        os.kill(os.getpid(), number)
        assert request() and request.exit_status == status
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGHUP])
def test_what_a_scheduler_sends_twice_is_one_request(second):
    """A launcher hands SIGTERM on to its processes, and the scheduler sends it to all of them, too."""
    with stop_on_signals() as request:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), second)
        assert request.exit_status == 143


def test_under_nohup_the_end_of_a_terminal_stops_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not request()
    finally:
        signal.signal(signal.SIGHUP, before)
