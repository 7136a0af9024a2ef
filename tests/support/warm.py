"""A Python server that has imported torch and other slow libraries, to save most of the time of short commands.

A server imports them once. For each command line a child of it, forked, runs as `python` would: with the words, the
folder, the environment and the open files of whoever asks, in an interpreter that imports our own code itself. So it
is for tests of what a process does, not of how it starts: those start a real one.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from functools import cache
from pathlib import Path
from typing import NoReturn

#: Modules of others that take long; what is not installed is left out.
HEAVY = (
    "torch",
    "torch.utils.tensorboard",
    "timm.models.vision_transformer",
    "open_clip",
    "torchmetrics.functional.image",
    "transformers.modeling_utils",
    "accelerate.state",
    "pandas",
)
#: Sends its words, folder, environment and open files, and ends as what they started does.
CLIENT = """
import json, os, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
socket.send_fds(connection, [b" "], [0, 1, 2])
request = {"words": sys.argv[2:], "folder": os.getcwd(), "environment": dict(os.environ)}
connection.sendall(json.dumps(request).encode() + b"\\n")
sys.exit(int(connection.recv(16) or 1))
"""


@cache
def warm_python() -> list[str]:
    """Return the first words of a command line that goes on with ``-c CODE`` and arguments, as that of python does."""
    if sys.platform != "linux":  # elsewhere libraries do not survive a fork
        return [sys.executable]
    path = str(Path(tempfile.mkdtemp(prefix="warm-"), "socket"))
    server = subprocess.Popen([sys.executable, __file__, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    atexit.register(server.communicate)  # closes its stdin, at which it ends
    assert server.stdout is not None and server.stdout.readline() == b"ready\n"
    return [sys.executable, "-IS", "-c", CLIENT, path]


def serve(path: str) -> None:
    """Run what is asked for at the socket, until stdin ends."""
    for name in HEAVY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # or each child would look through all of it, and so copy it
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    print("ready", flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who ends is forgotten at once
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            answer(connection)
        connection.close()
    shutil.rmtree(Path(path).parent)
    os._exit(0)


def answer(connection: socket.socket) -> NoReturn:
    """In a child: run the request in a child of its own, send its status; end it if nobody waits any more."""
    _, files, _, _ = socket.recv_fds(connection, 1, 3)
    request = json.loads(connection.makefile().readline())
    if (child := os.fork()) == 0:
        connection.close()
        become(request, files)
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        if select.select([connection], [], [], 0.01)[0]:
            os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(ended[1])
    with contextlib.suppress(OSError):
        connection.sendall(str(status if status >= 0 else 128 - status).encode())
    os._exit(0)


def become(request: dict, files: list[int]) -> NoReturn:
    """Run ``-c CODE`` as the process that asked would, and end."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    if "OMP_NUM_THREADS" in os.environ:
        importlib.import_module("torch").set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    option, code, *arguments = request["words"]
    assert option == "-c"
    sys.argv = ["-c", *arguments]
    sys.path[:1] = ["", *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    status: object = 0
    try:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
        status = 1
    if isinstance(status, str):
        print(status, file=sys.stderr)
    # Without the interpreter's own end, which takes as long as the imports do, and calls what is frozen leaked.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


if __name__ == "__main__":
    serve(sys.argv[1])
