"""Ctrl-C at any time is one line and status 130."""

import subprocess
import sys

import pytest

#: A module that swallows what is raised while it imports another, as modules with optional parts do.
SWALLOWING = """
import signal
try:
    signal.raise_signal(signal.SIGINT)
except BaseException:
    pass
"""
RUN = """
import signal, sys
from toklip_core.cli import process
signal.signal(signal.SIGINT, process._interrupt)
{}
print("it goes on")
"""


def interrupted(code, folder):
    done = subprocess.run([sys.executable, "-c", RUN.format(code)], cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr.splitlines()


def test_ctrl_c_ends_a_process_that_imports_a_module(tmp_path):
    (tmp_path / "swallowing.py").write_text(SWALLOWING)
    assert interrupted("import swallowing", tmp_path) == (130, "", ["Interrupted."])


@pytest.mark.parametrize("moment", ["toklip_core.cli.deferral.defer_packages", "toklip_core.cli.main.cli"])
def test_ctrl_c_outside_an_import_is_one_line(tmp_path, moment):
    module, _, name = moment.rpartition(".")
    code = f"import {module} as module\nmodule.{name} = lambda: signal.raise_signal(signal.SIGINT)\nprocess.run()"
    assert interrupted(code, tmp_path) == (130, "", ["Interrupted."])
