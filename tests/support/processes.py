"""Functions that run in several processes of a group, as torchrun starts them, and locks that another process holds."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.warm import warm_python

ROOT = Path(__file__).parents[2]
#: Some distributions install a package of the name `tests`, which would be found before this folder.
START = """
import importlib, pathlib, sys, types
sys.modules["tests"] = types.ModuleType("tests")
sys.modules["tests"].__path__ = ["tests"]
module, function, folder = sys.argv[1:]
getattr(importlib.import_module(module), function)(pathlib.Path(folder))
"""

HOLD = """
import fcntl, sys
file = open(sys.argv[1], "a")
try:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    print(True, flush=True)
except BlockingIOError:
    print(False, flush=True)
sys.stdin.read()
"""


def is_free(file: Path) -> bool:
    """Whether another process can have a file for itself."""
    command = [sys.executable, "-c", HOLD, str(file)]
    return subprocess.run(command, input="", capture_output=True, text=True, check=True).stdout == "True\n"


@contextmanager
def locked_elsewhere(file: Path) -> Iterator[None]:
    """Let another process hold a file, made if it is missing, for itself while inside; it is killed at the end."""
    command = [sys.executable, "-c", HOLD, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None and other.stdout.readline() == "True\n"
            yield
        finally:
            other.kill()


def run_together(function: Callable[[Path], None], folder: Path, count: int = 2, **environment: str) -> None:
    """Call a function of a test module with a folder in each process; all must end well."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared = os.environ | group | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | environment
    started = [
        subprocess.Popen(
            [*warm_python(), "-c", START, function.__module__, function.__name__, str(folder)],
            cwd=ROOT,
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        errors = [process.communicate(timeout=600)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * count, "\n".join(errors)
