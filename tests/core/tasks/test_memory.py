"""Nothing in the core makes a table for a tokenizer of bits: 2^28 rows of one byte would take 256 MiB."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.encoder_runs import encode, values, write_toml

#: Runs every command that reads ids with one tokenizer, then with another; prints the most kilobytes after each.
MEASURED = """
import resource, sys
from toklip_core.cli import cli

def toklip(*words):
    try:
        cli([*words], standalone_mode=False)
    except SystemExit as end:
        assert not end.code, words

folder = sys.argv[1]
for name in sys.argv[2:]:
    toklip("train", "encoder", f"{name}.toml", "--out", f"{name}-run")
    model = ["--model", f"{name}-run/model"]
    toklip("encode", folder, "--out", f"{name}-store", "--workers", "0", "--tokens", "--augment", "ten-crop", *model)
    toklip("decode", f"{name}-store", "--out", f"{name}-decoded")
    toklip("search", f"{name}-ids", "a red circle", *model)
    toklip("classify", f"{folder}/00.png", "--labels", "a red circle,a blue square", *model)
    toklip("explain", f"{folder}/00.png", "a red circle", "--out", f"{name}.png", *model)
    toklip("evaluate", "reconstruction", folder, "--tokenizer", name)
    print("kilobytes", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_commands_over_28_bits_take_as_much_memory_as_over_a_small_table(world: Path, tmp_path: Path):
    names = ("mean-colour", "colour-bits")
    for name in names:
        source = encode(world, tmp_path / f"{name}-ids", tokenizer=name, teacher=world / "teacher")
        write_toml(tmp_path / f"{name}.toml", values(world, source, tokenizer=name, run={"steps": 2}))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURED, str(world / "pictures"), *names],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(world / "site"), "TORCH_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    small, bits = (int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("kilobytes"))
    assert bits - small < 50 * 1024
