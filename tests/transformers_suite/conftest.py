"""transformers' own tests of models, generation and processors, on our classes: ``nox -s transformers-suite``.

The tests are those of the installed release, from a folder that has its ``tests/``: its source distribution, or a
checkout of its repository. The folder's ``tests`` joins ours under the one name, as the files there import each other.
"""

import sys
from pathlib import Path
from types import ModuleType

import pytest

import tests

#: What source distributions leave out -> the classes that others of their files want of it.
LEFT_OUT = {
    "exporters.test_export": ["ExportTesterMixin", "ExportGenerateTesterMixin"],
    "generation.test_utils": ["GenerationTesterMixin"],
}


def pytest_addoption(parser):
    parser.addoption(
        "--transformers", type=Path, metavar="PATH", help="folder that has the tests/ of the installed transformers"
    )


def pytest_configure(config):
    folder = config.getoption("--transformers", default=None)
    if folder is None:
        return
    if not (folder / "tests" / "test_modeling_common.py").is_file():
        raise pytest.UsageError(f"{str(folder)!r} has no tests/test_modeling_common.py; give a checkout")
    tests.__path__.append(str(folder.resolve() / "tests"))
    hub = ModuleType("fetch_hub_objects_for_ci")
    hub.url_to_local_path = str  # nothing is fetched
    sys.modules[hub.__name__] = hub
    for name in left_out(folder):
        module = ModuleType(f"tests.{name}")
        for mixin in LEFT_OUT[name]:
            setattr(module, mixin, type(mixin, (), {}))
        sys.modules[module.__name__] = module


def pytest_terminal_summary(terminalreporter, config):
    folder = config.getoption("--transformers", default=None)
    missing = [mixin for name in left_out(folder) for mixin in LEFT_OUT[name]] if folder else []
    if missing:
        terminalreporter.write_line(
            f"not run, as {folder} lacks them: {', '.join(missing)}; give a checkout of the installed release"
        )


def left_out(folder):
    return [name for name in LEFT_OUT if not (folder / "tests" / f"{name.replace('.', '/')}.py").is_file()]
