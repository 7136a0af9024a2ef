"""The README's two commands: one runs the main job, the other the tests, and CI runs the same."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pages import ROOT, blocks, commands

README = ROOT / "README.md"


def shell_blocks() -> list[str]:
    return [commands(block) for block in blocks(README) if block.language in ("bash", "console")]


def test_ci_runs_the_last_command():
    second = shell_blocks()[-1].strip()
    calls = [line.split("2>&1")[0].replace('"$@"', "").strip() for line in (ROOT / ".ci/run").read_text().splitlines()]
    assert second in calls


def test_the_first_command_installs_every_package_that_it_needs_from_this_repository():
    installed = set(re.findall(r"\./(packages/[\w-]+)", shell_blocks()[0]))
    assert installed == {"packages/toklip-core", "packages/toklip-vq"}
    assert all((ROOT / package / "pyproject.toml").exists() for package in installed)


@pytest.mark.slow
def test_after_its_installation_the_first_command_turns_photographs_into_tokens_and_back(tmp_path):
    from PIL import Image

    (tmp_path / "docs").symlink_to(ROOT / "docs", target_is_directory=True)
    command = shell_blocks()[0]
    job = command[command.index("toklip encode") :]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["bash", "-euo", "pipefail", "-c", job], cwd=tmp_path, env={**os.environ, "PATH": path}, check=True)
    photographs = {photograph.name for photograph in (ROOT / "docs/examples/photographs").glob("*.jpg")}
    written = list((tmp_path / "runs").rglob("*.png"))
    assert {picture.name.removesuffix(".png") for picture in written} == photographs
    for picture in written:
        with Image.open(picture) as opened:
            assert len(set(opened.convert("L").resize((8, 8)).tobytes())) > 8, f"{picture.name} shows next to nothing"


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "CHANGELOG.md", "LICENSE"])
def test_the_readme_leads_to(page):
    assert page in README.read_text()
