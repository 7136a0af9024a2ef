"""Contracts of the packages: one version, pinned siblings, contents of a wheel, nothing from a developer's machine."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))
NAMES = [package.name for package in PACKAGES]


def project(package: Path) -> dict:
    return tomllib.loads((package / "pyproject.toml").read_text())["project"]


def module(package: Path) -> Path:
    return package / "src" / package.name.replace("-", "_")


def requirements(package: Path) -> list[str]:
    described = project(package)
    extras = described.get("optional-dependencies", {}).values()
    return described["dependencies"] + [requirement for extra in extras for requirement in extra]


def test_all_packages_have_one_version():
    assert len({project(package)["version"] for package in PACKAGES}) == 1


def test_the_core_says_the_version_that_its_metadata_says():
    said = re.search(
        r'^__version__ = "(.+)"$', (module(ROOT / "packages/toklip-core") / "__init__.py").read_text(), re.M
    )
    assert said and said[1] == project(ROOT / "packages/toklip-core")["version"]


@pytest.mark.parametrize("package", PACKAGES, ids=NAMES)
def test_a_sibling_is_pinned_to_the_same_version(package):
    for requirement in requirements(package):
        name = re.split(r"[\[=<>!~ ;]", requirement)[0]
        if name in NAMES:
            assert requirement.endswith(f"=={project(package)['version']}"), requirement
        else:
            assert ">=" in requirement and "==" not in requirement, f"{requirement}: a floor, and no pin"


@pytest.mark.parametrize("package", PACKAGES, ids=NAMES)
def test_no_package_but_the_core_is_needed_by_another(package):
    siblings = {
        name for name in NAMES if any(name == re.split(r"[\[=]", r)[0] for r in project(package)["dependencies"])
    }
    assert siblings <= {"toklip-core"} - {package.name}


@pytest.mark.parametrize("package", PACKAGES, ids=NAMES)
def test_a_package_carries_the_licence_of_the_repository(package):
    assert (package / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@pytest.mark.parametrize("package", PACKAGES, ids=NAMES)
def test_a_package_says_its_licence_and_where_to_read_more(package):
    described = project(package)
    # PEP 639: the expression takes the place of a classifier, and an index refuses both together.
    assert described["license"] == "Apache-2.0"
    assert not [classifier for classifier in described["classifiers"] if classifier.startswith("License")]
    assert described["urls"]["Paper"] == "https://arxiv.org/abs/2505.05422"


def test_the_page_of_tested_versions_has_every_library_with_its_lower_bound():
    page = (ROOT / "docs/reference/tested-versions.md").read_text()
    rows = re.findall(r"^\| ([\w-]+) \| (toklip.+) \| ([\d.]+) \| (.+) \|$", page, re.MULTILINE)
    described = {(name, oldest, user) for name, users, oldest, _ in rows for user in users.split(", ")}
    needed = set()
    for package in PACKAGES:
        groups = {"": project(package)["dependencies"], **project(package).get("optional-dependencies", {})}
        for extra, wanted in groups.items():
            user = f"{package.name}[{extra}]" if extra else package.name
            needed |= {(*re.sub(r"\[.*\]", "", name).split(">="), user) for name in wanted if ">=" in name}
    assert described == needed, "change the table in docs/reference/tested-versions.md"
    for name, _, oldest, tested in rows:
        numbers = [tuple(map(int, re.findall(r"\d+", version))) for version in (oldest, tested)]
        assert tested == "not tested" or numbers[0] <= numbers[1], name


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES, ids=NAMES)
def test_a_wheel_holds_every_file_of_its_source_and_is_under_25_megabytes(package, tmp_path):
    # The module's own files only: hatchling is called as a build front end would, without a network.
    build = "import sys, hatchling.build; print(hatchling.build.build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, tmp_path], cwd=package, check=True, capture_output=True, text=True
    )
    built = tmp_path / done.stdout.split()[-1]
    assert built.stat().st_size < 25e6
    with zipfile.ZipFile(built) as wheel:
        carried = set(wheel.namelist())
    source = module(package)
    expected = {
        path.relative_to(source.parent).as_posix()
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    assert f"{source.name}/py.typed" in carried
    assert expected <= carried
    assert any(name.endswith("licenses/LICENSE") for name in carried)


def tracked_texts() -> list[tuple[str, str]]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    texts = []
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        content = path.read_bytes() if path.is_file() else b"\0"
        if b"\0" not in content[:8192]:
            texts.append((name, content.decode()))
    return texts


def test_no_tracked_file_names_a_path_of_a_machine():
    # Spelt in two halves, so that this file passes.
    of_a_machine = re.compile("(?<![\\w.~-])/" + "(?:home|root|Users|work|mnt|scratch|tmp)/" + "[\\w.-]+")
    found = [f"{name}: {match[0]}" for name, text in tracked_texts() for match in of_a_machine.finditer(text)]
    assert found == []


def test_a_text_file_ends_with_one_newline():
    written = {".py", ".md", ".toml", ".yml", ""}
    assert [
        name for name, text in tracked_texts() if Path(name).suffix in written and not re.search(r"\S\n\Z", text)
    ] == []
