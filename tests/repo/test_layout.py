"""Contract: telling file names, docstrings for everything public, and the names of the field."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator

import pytest

from tests.support.pages import ROOT

PACKAGES = sorted((ROOT / "packages").iterdir())
SOURCES = sorted((ROOT / "packages").glob("*/src/**/*.py"))
NAMES = [path.relative_to(ROOT).as_posix() for path in SOURCES]

#: Without signature and docstring.
MOST_LINES_OF_A_FUNCTION = 60
#: The training loop is one function.
LONG_FUNCTIONS = {"fit": 120}

#: Words that no explanation and no comment begins with; it begins with a verb, or with the noun that it explains.
FRAGMENT = re.compile(r"(Of|And|In|At|Such)\b")
#: Names of classes that are participles, or that had several meanings.
NO_NOUN = re.compile(
    r"_?(Asked|Answered|Captioned|Drawn|Encoded|Found|Frozen|Gathered|Held|Labelled|Loaded|Quantized|Read|Seen|Shown|Told"
    r"|Wanted|Part|Parts|Picture|Sample|Source)"
)
#: A comment on a line of its own.
COMMENT = re.compile(r"\s*#:? (.*)")

#: What the code is not called: it says nothing, or it is one codebase's word for what the field calls otherwise.
EMPTY_FILES = {"utils", "util", "common", "helpers", "helper", "misc", "tools", "base", "core"}
FORBIDDEN = re.compile(r"^(quant|emb_loss|n_e|e_dim|vq_table|lock|.*_v\d+|.*_ori|.*(Manager|Helper|Handler))$")


def public(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    """Public functions and classes at the top, and public methods of public classes."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node
            for inner in node.body if isinstance(node, ast.ClassDef) else []:
                if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                    yield f"{node.name}.{inner.name}", inner


def defined(tree: ast.Module) -> Iterator[str]:
    """Every name that the module gives: functions, classes, arguments, variables, attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def test_the_sources_are_found():
    assert "packages/toklip-core/src/toklip_core/plugins.py" in NAMES


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_a_file_has_a_telling_name(path):
    assert path.stem not in EMPTY_FILES


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_a_function_has_a_size_to_read(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            assert lines <= LONG_FUNCTIONS.get(node.name, MOST_LINES_OF_A_FUNCTION), f"{node.name} has {lines} lines"


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_everything_public_says_what_it_is(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "the module has no docstring"
    assert [name for name, node in public(tree) if not ast.get_docstring(node)] == []


def explanations(tree: ast.Module) -> Iterator[str]:
    """Every docstring, and what options, settings and specifications say of themselves."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield ast.get_docstring(node) or ""
        elif isinstance(node, ast.keyword) and node.arg in {"help", "description", "summary"}:
            said = node.value.values[0] if isinstance(node.value, ast.JoinedStr) else node.value
            if isinstance(said, ast.Constant) and isinstance(said.value, str):
                yield said.value


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_an_explanation_is_a_full_thought(path):
    texts = [*explanations(ast.parse(path.read_text()))]
    assert [text for text in texts if FRAGMENT.match(text)] == []
    # An argument's explanation begins with a noun or an adjective.
    assert [line for text in texts for line in text.splitlines() if re.match(r" +\w+: (of|and|in|such)\b", line)] == []


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_a_comment_is_a_full_thought(path):
    lines = path.read_text().splitlines()
    first = [line for above, line in zip(["", *lines], lines, strict=False) if not COMMENT.match(above)]
    assert [line for line in first if (comment := COMMENT.match(line)) and FRAGMENT.match(comment[1])] == []


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_names_are_the_fields(path):
    tree = ast.parse(path.read_text())
    assert sorted({name for name in defined(tree) if FORBIDDEN.match(name)}) == []
    classes = [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    assert [name for name in classes if NO_NOUN.fullmatch(name)] == []


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_nothing_is_left_for_later_or_swallowed(path):
    text = path.read_text()
    # Spelt in two halves, so that a search for them finds what is meant.
    assert not re.search(r"\b(TO" + r"DO|FIX" + r"ME|XXX)\b|breakpoint\(\)", text)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: a bare except"


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_a_package_is_typed_and_described(package):
    assert (package / "src" / package.name.replace("-", "_") / "py.typed").is_file()
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    assert project["name"] == package.name and project["readme"] == "README.md"
    assert (package / "README.md").read_text().startswith(f"# {package.name}\n")


@pytest.mark.parametrize(("package", "most"), [("toklip_core", 18), ("toklip_gen", 10), ("toklip_mllm", 10)])
def test_a_package_has_few_folders_and_files(package, most):
    """Counted is code: not `__init__` and `__main__`, nor the folders of recipes and weights."""
    source = ROOT / f"packages/{package.replace('_', '-')}/src/{package}"
    entries = {path.name for path in source.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert len(entries - {"__init__.py", "__main__.py", "__pycache__", "models", "recipes"}) <= most


#: All but the packages themselves, whose parent is src.
FOLDERS = sorted({path.parent for path in SOURCES if path.parent.parent.name != "src"})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_docstring_of_a_folder_names_its_files(folder):
    doc = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    names = {path.name for path in folder.glob("*.py")} - {"__init__.py"}
    assert [name for name in sorted(names) if not re.search(rf"(?m)(^|[ ,]){re.escape(name)}\b", doc)] == []
