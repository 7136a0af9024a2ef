"""Contract: allowed imports, and the time of `toklip --help`; docs/explanation/architecture.md describes them."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.support.pages import ROOT

#: Package -> its folders and single files, floor by floor: each imports from lower floors only.
FLOORS = {
    "toklip_core": [
        {"files"},
        {"config", "weights"},
        {"embeddings"},
        {"drawing", "plugins", "scenes"},
        {"pictures", "tokenizer"},
        {"model", "testing", "training"},
        {"store"},
        {"captioned"},
        {"evaluation"},
        {"demo", "tasks"},
        {"cli"},
        {"__main__"},
    ],
    "toklip_vq": [
        {"nearest", "onednn", "sharded_weights", "towers"},
        {"quantizers"},
        {"autoencoder"},
        {"vqgan"},
        {"published", "training"},
        {"commands", "specs"},
        {"plugin"},
    ],
    "toklip_mllm": [
        {"published", "registration"},
        {"model"},
        {"chat"},
        {"drawing", "evaluation", "terminal"},
        {"training"},
        {"commands"},
        {"plugin"},
    ],
    "toklip_gen": [
        {"published"},
        {"generator"},
        {"evaluation", "generate"},
        {"training"},
        {"commands"},
        {"plugin"},
    ],
}
#: What every package may import, beside itself.
SHARED = {"toklip_core"}
#: What every `toklip --help` imports: nothing heavy at the top of it.
LIGHT = {
    "toklip_core": {"cli", "config.compute", "config.ranges", "plugins", "__main__"},
    "toklip_vq": {"commands", "plugin", "specs"},
    "toklip_mllm": {"commands", "plugin", "published", "registration"},
    "toklip_gen": {"commands", "plugin", "published"},
}
HEAVY = {"torch", "timm", "open_clip", "tokenizers", "numpy", "PIL", "pyarrow", "safetensors", "huggingface_hub"}
HEAVY |= {"pydantic", "tqdm"}


def source_of(name: str) -> Path:
    """The folder of a package, or of a folder in it."""
    package = name.split(".")[0]
    return ROOT.joinpath("packages", package.replace("_", "-"), "src", *name.split("."))


def modules(package: str) -> Iterator[tuple[str, Path]]:
    source = source_of(package)
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        if parts != ("__init__",):
            yield ".".join([package, *parts]).removesuffix(".__init__"), path


MODULES = [(package, name, path) for package in FLOORS for name, path in modules(package)]


def imported(path: Path, *, top_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_only else ast.walk(tree)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def room(name: str) -> str:
    """The folder or single file of a package that a module is in: `pictures` for toklip_core.pictures.open."""
    return name.split(".")[1]


def floor(package: str, name: str) -> int:
    found = [number for number, rooms in enumerate(FLOORS[package]) if room(name) in rooms]
    assert len(found) == 1, f"{name} is on no floor: give it one in FLOORS"
    return found[0]


def imported_modules(package: str, path: Path) -> set[str]:
    """The modules of the package that a file imports, folders not among them."""
    names = {name for owner, name, place in MODULES if owner == package and place.name != "__init__.py"}
    return {target for target in imported(path) if target in names}


@pytest.mark.parametrize(("package", "name", "path"), MODULES, ids=[name for _, name, _ in MODULES])
def test_a_module_imports_lower_floors_only(package, name, path):
    own = floor(package, name)
    for target in imported_modules(package, path):
        if room(target) != room(name):
            assert floor(package, target) < own, f"{name} imports {target}, which is not below it"


@pytest.mark.parametrize("package", FLOORS)
def test_no_module_imports_itself_by_way_of_others(package):
    below = {name: imported_modules(package, path) - {name} for owner, name, path in MODULES if owner == package}
    TopologicalSorter(below).prepare()  # CycleError names the circle


@pytest.mark.parametrize(("package", "name", "path"), MODULES, ids=[name for _, name, _ in MODULES])
def test_a_folder_is_imported_by_its_face(package, name, path):
    """What others may use of a folder stands in its __init__.pyi; the files behind it are its own business."""
    files = {other for _, other, place in MODULES if place.with_name("__init__.pyi").exists() and other.count(".") > 1}
    for target in imported(path) & files:
        assert target.rpartition(".")[0] == name.rpartition(".")[0], f"{name} imports {target}"


@pytest.mark.parametrize(("package", "name", "path"), MODULES, ids=[name for _, name, _ in MODULES])
def test_a_package_imports_no_sibling_but_the_core(package, name, path):
    ours = {target.split(".")[0] for target in imported(path) if target.startswith("toklip_")}
    assert ours <= SHARED | {package}


@pytest.mark.parametrize(("package", "name", "path"), MODULES, ids=[name for _, name, _ in MODULES])
def test_what_every_start_of_toklip_imports_is_light(package, name, path):
    if any(f"{name}.".startswith(f"{package}.{light}.") for light in LIGHT[package]):
        assert {target.split(".")[0] for target in imported(path, top_only=True)} & HEAVY == set()


def test_help_imports_nothing_heavy():
    script = """
import sys
from click.testing import CliRunner
from toklip_core.cli import cli
for words in (["--help"], ["train", "--help"], ["evaluate", "--help"], ["encode", "--help"], ["tokenizers"]):
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
print(",".join(sorted({name.split(".")[0] for name in sys.modules})))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert set(done.stdout.strip().split(",")) & (HEAVY | {"toklip_vq.vqgan", "timm", "transformers"}) == set()


def top_imports(module: str) -> set[str]:
    """Our packages that a module of the tests imports when it is imported, by way of others too."""
    found, waiting, done = set(), [module], set()
    while waiting:
        name = waiting.pop()
        if name in done:
            continue
        done.add(name)
        path = ROOT.joinpath(*name.split(".")).with_suffix(".py")
        if path.is_file():
            targets = imported(path, top_only=True)
            waiting += [target for target in targets if target.startswith("tests.")]
            found |= {target.split(".")[0] for target in targets if target.startswith("toklip_")}
    return found


@pytest.mark.parametrize("package", FLOORS)
def test_the_tests_of_a_package_import_no_sibling_but_the_core(package):
    folder = ROOT / "tests" / package.removeprefix("toklip_")
    paths = sorted(folder.rglob("*.py"))
    assert paths
    for path in paths:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        assert top_imports(module) <= SHARED | {package}, f"{module} imports a sibling"
