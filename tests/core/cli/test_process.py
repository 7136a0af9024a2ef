"""Ctrl-C at any time is one line and status 130."""

import subprocess
import sys

import pytest

#: A module that swallows what is raised while it is imported, as modules with optional parts do, and takes its time.
SWALLOWING = """
import signal, time
try:
    signal.raise_signal(signal.SIGINT)
    time.sleep(0.1)
except BaseException:
    pass
print("imported")
"""
RUN = """
import {module} as module
from toklip_core.cli.process import run

def interrupted(*arguments):
    try:
        {work}
        time.sleep(9)
    finally:
        print("tidied up")

module.{name} = interrupted
run()
print("it goes on")
"""


def interrupted(moment, work, folder):
    module, _, name = moment.rpartition(".")
    code = "import signal, time\n" + RUN.format(module=module, name=name, work=work)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


@pytest.mark.parametrize("moment", ["toklip_core.cli.deferral.defer_packages", "toklip_core.cli.main.cli"])
def test_ctrl_c_is_one_line(tmp_path, moment):
    work = "signal.raise_signal(signal.SIGINT)"
    assert interrupted(moment, work, tmp_path) == (130, ["tidied up"], ["Interrupted."])


@pytest.mark.parametrize("times", [1, 3])
def test_ctrl_c_in_an_import_counts_after_it(tmp_path, times):
    press = "    signal.raise_signal(signal.SIGINT)\n"
    (tmp_path / "swallowing.py").write_text(SWALLOWING.replace(press, press * times))
    found = interrupted("toklip_core.cli.main.cli", "import swallowing", tmp_path)
    assert found == (130, ["imported", "tidied up"], ["Interrupted."])


def test_ctrl_c_in_the_last_import_counts_too(tmp_path):
    (tmp_path / "swallowing.py").write_text(SWALLOWING.replace("time.sleep(0.1)", "pass"))
    found = interrupted("toklip_core.cli.main.cli", "import swallowing; raise SystemExit(0)", tmp_path)
    assert found == (130, ["imported", "tidied up"], ["Interrupted."])


def test_who_handles_ctrl_c_after_the_import_gets_it_once(tmp_path):
    """Training, for example, takes a second one as the wish to stop at once."""
    (tmp_path / "swallowing.py").write_text(SWALLOWING)
    take = "took = []; import swallowing; signal.signal(signal.SIGINT, lambda *signals: took.append(signals))"
    work = f"{take}; time.sleep(0.3); print(len(took)); raise KeyboardInterrupt"
    found = interrupted("toklip_core.cli.main.cli", work, tmp_path)
    assert found == (130, ["imported", "1", "tidied up"], ["Interrupted."])


@pytest.mark.slow
def test_a_second_ctrl_c_ends_an_import_that_hangs(tmp_path):
    press = "signal.raise_signal(signal.SIGINT)"
    hanging = f"time.sleep(1.2); {press}; time.sleep(9)"
    (tmp_path / "swallowing.py").write_text(SWALLOWING.replace("time.sleep(0.1)", hanging))
    found = interrupted("toklip_core.cli.main.cli", "import swallowing", tmp_path)
    assert found == (130, [], ["Interrupted."])
