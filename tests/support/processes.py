"""Run a function in several processes that make one group, as torchrun starts them; on CPUs, by gloo."""

import os
import socket
import subprocess
from collections.abc import Callable
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
