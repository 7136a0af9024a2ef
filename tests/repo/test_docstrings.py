"""Contract: examples in docstrings give the output that they show, and public names have one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from dataclasses import is_dataclass
from pathlib import Path

import pytest

from tests.support.pages import ROOT

SOURCES = sorted((ROOT / "packages").glob("*/src/**/*.py"))
EXAMPLES = [path for path in SOURCES if ">>> " in path.read_text()]
#: Faces of packages, whose names a reader takes first.
FACES = sorted((ROOT / "packages").glob("*/src/*/__init__.pyi"))


def module_name(path: Path) -> str:
    words = path.relative_to(next(path.parents[i] for i in range(9) if path.parents[i].name == "src")).with_suffix("")
    return ".".join(part for part in words.parts if part != "__init__")


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=module_name)
def test_examples_give_what_they_say(path, tmp_path, monkeypatch):
    (tmp_path / "docs").symlink_to(ROOT / "docs", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(module_name(path))
    tests = [test for test in doctest.DocTestFinder().find(module) if test.examples]
    assert tests
    for test in tests:
        report: list[str] = []
        doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=report.append)
        assert not report, "".join(report)


def names() -> list[tuple[str, str]]:
    return [
        (module_name(face), name)
        for face in FACES
        if face.parent.parent.name == "src"
        for name in re.findall(r"\b(\w+) as \1\b", face.read_text())
        if name != "hookimpl"  # a marker of pluggy, with a docstring of its own
    ]


@pytest.mark.parametrize(("package", "name"), names())
def test_a_name_of_a_package_has_an_example(package, name):
    named = getattr(importlib.import_module(package), name)
    # Values alone are shown where a function takes or returns them.
    is_value = inspect.isclass(named) and (issubclass(named, tuple) or is_dataclass(named))
    assert is_value or ">>> " in named.__doc__
