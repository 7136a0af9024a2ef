"""The log of a run at Weights & Biases: the same lines, and one run even if it is resumed."""

import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
from toklip_core.config import RunConfig
from toklip_core.training import Losses, fit
from torch import nn

from tests.core.training.test_loop import Numbers, Toy as Model, lines, objective, run_config
from tests.support.toy_tasks import ToyTask


class Library:
    """In the place of the module: notes what it is told."""

    def __init__(self) -> None:
        self.started: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.ended: list[int] = []

    def init(self, **settings: Any) -> "Library":
        self.started.append(settings)
        return self

    def log(self, figures: dict[str, float], step: int) -> None:
        self.logged.append((step, figures))

    def finish(self, exit_code: int) -> None:
        self.ended.append(exit_code)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    fake, found = types.ModuleType("wandb"), Library()
    fake.init = found.init
    fake.__spec__ = ModuleSpec("wandb", None)  # accelerate looks for it
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return found


def train(out: Path, run: RunConfig, objective: Any = objective) -> None:
    fit(ToyTask(Model(), Numbers(), objective), run, out)


def test_the_log_goes_there_too(tmp_path: Path, library: Library):
    train(tmp_path / "run", run_config(steps=4, wandb="my-project"))
    (started,) = library.started
    assert (started["project"], started["name"], started["resume"]) == ("my-project", "run", "allow")
    assert started["config"]["run"]["steps"] == 4
    assert [{"step": step, **figures} for step, figures in library.logged] == lines(tmp_path / "run")
    assert library.ended == [0]


def test_a_resumed_run_is_the_same_run_there(tmp_path: Path, library: Library):
    train(tmp_path / "run", run_config(steps=3, wandb="mine"))
    train(tmp_path / "run", run_config(steps=6, wandb="mine"))
    train(tmp_path / "other", run_config(steps=1, wandb="mine"))
    ids = [started["id"] for started in library.started]
    assert ids[0] == ids[1] != ids[2]


def test_it_may_begin_and_end_between_two_parts_of_a_run(tmp_path: Path, library: Library):
    train(tmp_path / "run", run_config(steps=3))
    train(tmp_path / "run", run_config(steps=5, wandb="mine"))
    train(tmp_path / "run", run_config(steps=6))
    assert len(library.started) == 1 and [step for step, _ in library.logged] == [4, 5]


def test_a_run_that_fails_is_said_to_have_failed(tmp_path: Path, library: Library):
    def breaking(model: nn.Module, batch: Any, step: int) -> Losses:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        train(tmp_path / "run", run_config(wandb="mine"), breaking)
    assert library.ended == [1]


def test_without_the_library_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(LookupError, match=r"wandb is not installed: pip install wandb, or leave out run.wandb"):
        train(tmp_path / "run", run_config(wandb="mine"))
    assert not (tmp_path / "run").exists()


def test_a_library_that_does_not_start_ends_the_run_with_one_line(
    tmp_path: Path, library: Library, monkeypatch: pytest.MonkeyPatch
):
    def refuse(**settings: Any) -> None:
        raise RuntimeError("no key")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    with pytest.raises(OSError, match=r"wandb does not start: no key; WANDB_MODE=offline needs no network"):
        train(tmp_path / "run", run_config(wandb="mine"))
