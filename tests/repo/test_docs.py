"""Contract: every block on the pages runs as it is typed, every hook is described, every link has a target.

Blocks run in order, each page in a folder of its own that has the repository's `docs/examples` in it. `toklip` is a
process there that has its libraries already: most of the time would go into importing them. A block that cannot run
here (it needs a network, or an hour) has `<!-- not run: REASON -->` on the line before it; its syntax and the options
that it uses are checked all the same. A block with a `title` becomes the file of that name.
"""

from __future__ import annotations

import ast
import gc
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

from tests.support.pages import PAGES, ROOT, Block, blocks, commands, toklip_words
from tests.support.warm import warm_python

SHELLS = ("bash", "console", "sh")
#: Pages that need what the other tests do not need, and whether that is here: `nox -s engines` runs them.
NEEDED = {
    "docs/how-to/encode-on-ray.md": {"ray": find_spec("ray")},
    "docs/how-to/encode-on-spark.md": {"pyspark": find_spec("pyspark"), "Java": shutil.which("java")},
}
RUNNABLE = [page for page in PAGES if any(b.language in (*SHELLS, "python") for b in blocks(page))]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def option_names(words: list[str]) -> tuple[str, set[str], set[str]]:
    """Walk down to the command that the words call: its path, the options it has, the options it is given."""
    from toklip_core.cli import cli

    command: click.Command = cli
    context = click.Context(cli, info_name="toklip")
    rest = list(words)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        found = command.get_command(context, rest.pop(0))
        assert found is not None, f"there is no command `toklip {' '.join(words)}`"
        command = found
        context = click.Context(command, info_name=command.name, parent=context)
    known = {
        option for parameter in command.get_params(context) for option in (*parameter.opts, *parameter.secondary_opts)
    }
    given = {word.split("=")[0] for word in rest if re.match(r"-{1,2}[a-zA-Z]", word)}
    return context.command_path, known, given


@pytest.fixture(scope="session")
def commands_folder(tmp_path_factory):
    """A folder with the command `toklip`, to be found before the installed one."""
    folder = tmp_path_factory.mktemp("bin")
    start = [*warm_python(), "-c", "import sys; sys.argv[0] = 'toklip'; from toklip_core.cli import cli; cli()"]
    (folder / "toklip").write_text(f'#!/bin/sh\nexec {shlex.join(start)} "$@"\n')
    (folder / "toklip").chmod(0o755)
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "examples").symlink_to(ROOT / "docs" / "examples", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(block: Block, where: str, variables: dict, commands_folder: Path) -> None:
    if block.language in SHELLS:
        path = os.pathsep.join([str(commands_folder), str(Path(sys.executable).parent), os.environ["PATH"]])
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands(block)],
            env={**os.environ, "PATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{where}\n{commands(block)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    else:
        exec(compile(block.code, where, "exec"), variables)


def run_of(page: Path):
    """The page as a parameter: skipped where its libraries are missing, and without the warnings of these."""
    if name(page) not in NEEDED:
        return pytest.param(page, id=name(page))
    missing = [needed for needed, found in NEEDED[name(page)].items() if found is None]
    skipped = pytest.mark.skipif(bool(missing), reason=f"{' and '.join(missing)} is not installed: nox -s engines")
    return pytest.param(page, id=name(page), marks=[skipped, pytest.mark.filterwarnings("default")])


@pytest.mark.slow
@pytest.mark.parametrize("page", [run_of(page) for page in RUNNABLE])
def test_every_block_of_a_page_runs_as_typed(page, folder, commands_folder):
    variables: dict = {"__name__": "__page__"}
    for block in blocks(page):
        if block.title:
            Path(block.title).write_text(block.code)
        if not block.reason and (block.language in SHELLS or (block.language == "python" and not block.title)):
            run(block, f"{name(page)}:{block.line}", variables, commands_folder)
    variables.clear()
    if name(page) in NEEDED:
        gc.collect()  # Ray does not wait for its processes; here the warning of that is not an error


@pytest.mark.parametrize("page", RUNNABLE, ids=name)
def test_every_command_of_a_page_exists_with_the_options_it_is_given(page):
    for block in blocks(page):
        if block.language in SHELLS:
            subprocess.run(["bash", "-n", "-c", commands(block)], check=True)
            for words in toklip_words(block):
                path, known, given = option_names(words)
                assert given <= known | {"--help", "-h", "--version"}, (
                    f"{name(page)}:{block.line}: {path} has no {given - known}"
                )


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_parses(page):
    for block in blocks(page):
        if block.language == "python":
            ast.parse(block.code)
        if block.language == "toml":
            tomllib.loads(block.code)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_to_a_file_leads_to_one(page):
    text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", text):
        assert "://" in target or target.startswith("mailto:") or (page.parent / target).exists(), (
            f"{name(page)}: {target}"
        )


def hook_signatures() -> list[str]:
    tree = ast.parse((ROOT / "packages/toklip-core/src/toklip_core/plugins.py").read_text())
    hooks = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("toklip_")]
    return [
        ast.unparse(ast.FunctionDef(h.name, h.args, [ast.Pass()], [], h.returns, lineno=0)).splitlines()[0]
        for h in hooks
    ]


def test_every_hook_is_described_with_its_exact_signature():
    page = (ROOT / "docs/reference/plugins.md").read_text()
    signatures = hook_signatures()
    assert len(signatures) >= 2
    for signature in signatures:
        assert signature.removesuffix(":") in page
