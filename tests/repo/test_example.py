"""The example plugin is built, installed and tested, and the tutorial shows exactly its files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.pages import ROOT, blocks

TOY = ROOT / "docs/examples/toklip-toy"
TUTORIAL = ROOT / "docs/tutorials/write-a-tokenizer-plugin.md"


def test_the_tutorial_shows_every_file_of_the_example_byte_for_byte():
    shown = {block.title.removeprefix("toklip-toy/"): block.code for block in blocks(TUTORIAL) if block.title}
    files = [TOY / "pyproject.toml", *(path for folder in ("src", "tests") for path in (TOY / folder).rglob("*.py"))]
    assert shown == {path.relative_to(TOY).as_posix(): path.read_text() for path in files}


def test_the_tutorial_shows_every_file_before_its_tests_are_run():
    """Where the example is installed already, as here, running the page would not show a module that comes too late."""
    shown = blocks(TUTORIAL)
    (tested,) = [block.line for block in shown if block.code.startswith("pytest ")]
    assert max(block.line for block in shown if block.title) < tested


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The environment of a process that has the example installed: its wheel, which is pure Python, is unpacked."""
    folder = tmp_path_factory.mktemp("toy")
    build = "import sys, hatchling.build; print(hatchling.build.build_wheel(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", build, folder], cwd=TOY, check=True, capture_output=True, text=True)
    with zipfile.ZipFile(folder / done.stdout.split()[-1]) as wheel:
        wheel.extractall(folder / "site")
    path = os.pathsep.join(filter(None, [str(folder / "site"), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path}


def run(environment, *words, **options):
    done = subprocess.run(words, env=environment, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def toklip(environment, *words):
    return run(environment, Path(sys.executable).with_name("toklip"), *words)


@pytest.mark.slow
def test_the_installed_example_passes_its_own_tests(installed, tmp_path):
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, TOY / "tests"]
    assert "passed" in run(installed, *words, cwd=tmp_path)


@pytest.mark.slow
def test_the_installed_example_is_found_and_offers_its_command(installed):
    (toy,) = [row for row in json.loads(toklip(installed, "plugins", "--json")) if row["name"] == "toy"]
    assert toy == {
        "name": "toy",
        "module": "toklip_toy.plugin",
        "distribution": "toklip-toy",
        "version": "0.1.0",
        "error": "",
    }
    assert "toy" in [row["name"] for row in json.loads(toklip(installed, "tokenizers", "--json"))]
    assert "palette" in toklip(installed, "--help")


def test_help_imports_nothing_heavy_with_the_example_installed(installed):
    script = "import sys; from toklip_core.cli import cli; cli(['--help'], standalone_mode=False); print(*sys.modules)"
    loaded = {name.split(".")[0] for name in run(installed, sys.executable, "-c", script).split()}
    assert "toklip_toy" in loaded
    assert loaded & {"torch", "numpy", "pyarrow", "PIL", "pydantic", "safetensors", "tqdm"} == set()
