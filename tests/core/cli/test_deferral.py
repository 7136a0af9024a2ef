"""Laws of packages that wait for their first use; tests/repo/test_start.py has those of timm and torchvision."""

import importlib
import subprocess
import sys
import threading
from types import ModuleType

import pytest
from click.testing import CliRunner
from toklip_core.cli import cli, deferral
from toklip_core.model import load_model


@pytest.fixture
def slow_package(tmp_path, monkeypatch):
    """A package that waits, and whose __init__ takes its time between two names; its name."""
    name = "slow_package"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text(
        "import time\nfirst = 1\ntime.sleep(0.5)\nfrom slow_package import part\nlast = part.number\n"
    )
    (tmp_path / name / "part.py").write_text("number = 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(deferral, "_SLOW", (name,))
    yield name
    for module in (name, f"{name}.part"):
        sys.modules.pop(module, None)


def test_threads_that_ask_while_a_package_is_initialised_wait_for_it(slow_package):
    deferral.defer_packages()
    package = importlib.import_module(slow_package)
    assert type(package) is not ModuleType
    found = []
    names = ["last", "first", "last", "last"]
    threads = [threading.Thread(target=lambda name=name: found.append(getattr(package, name))) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [1, 2, 2, 2]
    assert type(package) is ModuleType
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = package.nothing


def test_a_package_that_could_not_be_initialised_is_tried_again(slow_package, tmp_path):
    source = tmp_path / slow_package / "__init__.py"
    deferral.defer_packages()
    package = importlib.import_module(slow_package)
    good = source.read_text()
    source.write_text("raise ImportError('not today')")
    with pytest.raises(ImportError, match="not today"):
        _ = package.last
    source.write_text(good)
    assert package.last == 2


def test_a_program_that_uses_the_toolkit_finds_its_packages_as_always(slow_package):
    assert CliRunner().invoke(cli, ["tokenizers"]).exit_code == 0
    load_model("toklip-tiny")
    assert slow_package not in sys.modules
    script = """
import sys
import toklip_core.cli.main, toklip_core.model
assert not [name for name, module in sys.modules.items() if type(module).__name__ == "_DeferredPackage"]
"""
    subprocess.run([sys.executable, "-c", script], check=True)
