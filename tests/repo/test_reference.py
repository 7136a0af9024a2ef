"""The reference has all commands, options, settings and public names, and pages name only what exists."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from toklip_vq.plugin import toklip_register_tokenizers

from tests.support.pages import PAGES, ROOT, blocks

REFERENCE = ROOT / "docs/reference"
PACKAGES = ("toklip_core", "toklip_vq", "toklip_mllm", "toklip_gen")
#: A module that another program imports: it needs that program.
ELSEWHERE = {"toklip_mllm.evaluation.lmms_eval", "toklip_core.demo.app.page"}
#: What names are imported from without their module.
OFFERING = (*PACKAGES, "toklip_core.scenes")
_FENCED = re.compile(r"^[ ]*```.*?^[ ]*```", re.MULTILINE | re.DOTALL)


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def sections(page: Path) -> dict[str, str]:
    """Heading of the second level -> the text below it."""
    parts = re.split(r"^## (.+)$", page.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def all_commands(command: click.Command, words: tuple[str, ...]) -> Iterator[tuple[str, click.Command]]:
    yield " ".join(words), command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for word in command.list_commands(context):
            found = command.get_command(context, word)
            # The example of a plugin may be installed beside the packages.
            if found is not None and (found.callback.__module__ or "").startswith(PACKAGES):
                yield from all_commands(found, (*words, word))


def test_every_command_is_in_the_reference_with_all_of_its_options():
    from toklip_core.cli import cli

    described = sections(REFERENCE / "cli.md")
    found = dict(all_commands(cli, ("toklip",)))
    assert len(found) > 15
    for path, command in found.items():
        assert path in described, f"`{path}` is not in cli.md: run `python docs/generate.py`"
        for parameter in command.params:
            options = [*parameter.opts, *parameter.secondary_opts] if isinstance(parameter, click.Option) else []
            missing = [option for option in options if f"`{option}`" not in described[path]]
            assert not missing, f"`{path}` has {missing}, and cli.md has not: run `python docs/generate.py`"


def settings() -> list[type]:
    """All models of the packages that have fields, found by what they derive from."""
    from toklip_core.config import Config

    for package in map(importlib.import_module, PACKAGES):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name not in ELSEWHERE:
                importlib.import_module(module.name)
    found, waiting = [], [Config]
    while waiting:
        model = waiting.pop()
        waiting += model.__subclasses__()
        if model.model_fields and model.__module__.startswith(PACKAGES):
            found.append(model)
    return found


def test_every_setting_is_in_the_reference():
    described = sections(REFERENCE / "config.md")
    models = settings()
    assert len(models) > 30
    for model in models:
        assert model.__name__ in described, f"{model.__name__} is not in config.md: run `python docs/generate.py`"
        missing = [field for field in model.model_fields if f"| `{field}` |" not in described[model.__name__]]
        assert not missing, f"{model.__name__} has {missing}, and config.md has not: run `python docs/generate.py`"


def test_every_tokenizer_is_in_the_table_as_its_description_says():
    lines = (REFERENCE / "tokenizers.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    table = {row[0].split("`")[1]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}
    specs = {spec.name: spec for spec in toklip_register_tokenizers()}
    raw = {name for name in specs if name.removesuffix("-raw") in {*specs} - {name}}
    assert table.keys() == specs.keys() - raw
    assert {f"{name}-raw" for name, row in table.items() if "`-raw`" in row["name"]} == raw
    for name, row in table.items():
        spec = specs[name]
        assert row["licence"] in (spec.licence, "yours") and row["rFID"] == spec.rfid
        assert row["size"] == f"{spec.image_size}{' only' if spec.fixed_size else ''}"
        if spec.grid is not None:
            said = [row[column].replace(",", "") for column in ("Q x K", "ids", "bits")]
            assert said == [spec.codebooks, f"{spec.ids_per_picture}", f"{spec.bits_per_picture:.0f}"]


def imported_names(page: Path) -> Iterator[tuple[str, str]]:
    """What the Python of a page imports from the packages: (module, name)."""
    for block in blocks(page):
        if block.language == "python":
            for node in ast.walk(ast.parse(block.code)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGES):
                    yield from ((node.module or "", alias.name) for alias in node.names)


def public_names() -> set[tuple[str, str]]:
    """What may be imported from a package itself, and what some page imports from a module: (module, name)."""
    offered = {
        (package, public)
        for package in OFFERING
        for public in getattr(importlib.import_module(package), "__all__", ())
        if not public.startswith("__")
    }
    return offered | {found for page in PAGES for found in imported_names(page)}


def test_every_public_name_is_in_the_reference():
    """Classes and functions by the page of their module, made of docstrings; settings by theirs; values by a word."""
    modules = set(re.findall(r"^::: (\S+)$", (REFERENCE / "api.md").read_text(), re.MULTILINE))
    words = {word for page in REFERENCE.glob("*.md") for word in re.findall(r"`([\w.]+)`", page.read_text())}
    described = sections(REFERENCE / "config.md")
    names = public_names()
    assert len(names) > 40
    for module, public in sorted(names):
        found = getattr(importlib.import_module(module), public)
        if isinstance(found, type) or inspect.isfunction(found):
            there = (found.__module__ in modules and bool(found.__doc__)) or public in described
        else:
            there = bool({public, f"{module}.{public}"} & words)
        assert there, f"{module}.{public} is nowhere in docs/reference: name its module in api.md"


def test_every_module_of_the_reference_exists():
    for module in re.findall(r"^::: (\S+)$", (REFERENCE / "api.md").read_text(), re.MULTILINE):
        importlib.import_module(module)


def anchor(heading: str) -> str:
    """As python-markdown's `toc` makes it of a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "")
    letters = unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", letters).strip().lower())


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#{1,6} (.+?)\s*$", _FENCED.sub("", page.read_text()), re.MULTILINE)
    return {anchor(heading) for heading in headings}


def is_documented(path: str, page: Path) -> bool:
    """Whether a module that a page documents has the dotted name."""
    for module in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE):
        if path.startswith(f"{module}."):
            return hasattr(importlib.import_module(module), path.removeprefix(f"{module}.").split(".")[0])
    return False


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_anchor_of_a_link_exists(page):
    text = re.sub(r"`[^`]*`", "", _FENCED.sub("", page.read_text()))
    for target, fragment in re.findall(r"\]\(([^)\s#]*)#([^)\s]+)\)", text):
        if "://" in target:
            continue
        there = (page.parent / target).resolve() if target else page
        assert fragment in anchors(there) or is_documented(fragment, there), f"{name(page)}: {target}#{fragment}"


@pytest.fixture(scope="session")
def tests_by_name():
    """All test functions, and the files they are in."""
    files = list((ROOT / "tests").rglob("test_*.py"))
    functions = {word for file in files for word in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)}
    return functions | {file.name for file in files}


def resolves(path: str) -> bool:
    """Whether a dotted name of the packages is a module, or is in one."""
    found: object = importlib.import_module(path.split(".")[0])
    for end, part in enumerate(path.split(".")[1:], start=2):
        if not hasattr(found, part):
            try:
                importlib.import_module(".".join(path.split(".")[:end]))
            except ModuleNotFoundError:
                return False
        found = getattr(found, part)
    return True


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_test_and_every_dotted_name_of_a_page_exists(page, tests_by_name):
    for word in re.findall(r"`([\w./]+)`", _FENCED.sub("", page.read_text())):
        if re.fullmatch(r"test_\w+(\.py)?", word):
            assert word in tests_by_name, f"{name(page)}: {word}"
        elif word.startswith("tests/"):
            assert (ROOT / word).exists(), f"{name(page)}: {word}"
        elif word.startswith(tuple(f"{package}." for package in PACKAGES)):
            assert resolves(word), f"{name(page)}: {word}"
