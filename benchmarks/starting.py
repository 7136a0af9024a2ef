"""How long commands take from being typed until they answer, for one picture of 64 px and the models in the packages.

The peer is `import torch` alone, in a process of its own: no command does without that import. All take turns, and the
turn that does not count lets the system read the files. The bytecode of the libraries must be compiled, as it is after
the first start.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from PIL import Image
from toklip_core.scenes import scene

from benchmarks._race import Options, Row, race

#: Seconds that a command may take.
WANTED = "2.5 s"
#: Name of a picture in the folder where the commands run.
PICTURE = "picture.png"
#: Name of a store, which is a new one in each turn: a picture that is stored is not encoded again.
STORE = "store"
COMMANDS = {
    "encode": ["encode", PICTURE, "--out", STORE],
    "classify": ["classify", PICTURE, "--labels", "a red circle,a blue square"],
    "generate": ["generate", "a red circle", "--out", "drawn.png"],
    "ask": ["ask", PICTURE, "what colour is it?"],
}


def rows(options: Options) -> Iterator[Row]:
    """Yield the seconds of each command."""
    with tempfile.TemporaryDirectory() as folder:
        Image.fromarray(scene(0).rgb).save(Path(folder, PICTURE))
        turns = {"import torch": partial(_run, folder, ["-c", "import torch"], options)}
        for name, words in COMMANDS.items():
            turns[name] = partial(_run, folder, ["-m", "toklip_core", *words], options)
        seconds, _ = race(turns, options.repeats)
    for name in COMMANDS:
        yield Row(
            what=f"toklip {name}, one picture",
            unit="s",
            ours=seconds[name],
            peer=seconds["import torch"],
            peer_name="import torch alone",
            wanted=WANTED,
            note=f"best of {options.repeats}: {min(seconds[name].repeats):.2f} s",
        )


def _run(folder: str, words: list[str], options: Options) -> None:
    if STORE in words:
        shutil.rmtree(Path(folder, STORE), ignore_errors=True)
    threads = {"OMP_NUM_THREADS": str(options.threads)}
    bytecode = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run(
        [sys.executable, *words], cwd=folder, env=bytecode | threads, check=True, stdout=subprocess.DEVNULL
    )
