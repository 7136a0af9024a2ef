"""The laws of fit: exact resume, whole checkpoints, frozen weights, order of the data, signals."""

import json
import math
import multiprocessing
import os
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toklip_core.config import RunConfig
from toklip_core.training import (
    Evaluation,
    FitReport,
    Losses,
    ParameterGroup,
    build_optimizers,
    checkpoints,
    derived_seed,
    fit,
    learning_rate_factor,
    shuffled,
)
from torch import Tensor, nn

from tests.support.processes import is_free, locked_elsewhere
from tests.support.refusals import refusing
from tests.support.starved import NO_MEMORY, no_file_handles, raising, system_error
from tests.support.toy_tasks import ToyTask


class Numbers:
    """Samples that depend on epoch and index: a vector and the sum of its squares."""

    def __init__(self, size: int = 10) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        vector = torch.randn(6, generator=torch.Generator().manual_seed(derived_seed(*key)))
        return vector, vector.square().sum()


class Toy(nn.Module):
    """A body, a head that trains at its own rate, a frozen part with dropout, a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(0.1))
        self.frozen = nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.9)).requires_grad_(False)
        self.head = nn.Linear(16, 1)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, vectors: Tensor) -> Tensor:
        if self.training:
            self.seen += len(vectors)
        features = self.body(vectors)
        return self.head(features + self.frozen(features))[:, 0]


def objective(model: nn.Module, batch: tuple[Tensor, Tensor], step: int) -> Losses:
    guess = model(batch[0])
    return Losses({"error": nn.functional.mse_loss(guess, batch[1])}, {"guess": guess.mean()})


def run_config(**changes: Any) -> RunConfig:
    values = {"steps": 7, "batch_size": 4, "learning_rate": 0.01, "log_every": 2, "save_every": 3, "evaluate_every": 3}
    return RunConfig(**(values | {"ema_decay": 0.9, "max_grad_norm": 1.0} | changes))


def train(
    out: Path, run: RunConfig | None = None, objective: Callable[..., Losses] = objective, **more: Any
) -> tuple[FitReport, Toy]:
    torch.manual_seed(0)
    model = Toy()
    groups = [
        ParameterGroup(names=frozenset({"body.0.weight", "body.0.bias"})),
        ParameterGroup(
            names=frozenset({"head.weight", "head.bias"}),
            learning_rate_factor=2.0,
            weight_decay=0.1,
            clip_with="head",
        ),
    ]

    members = {"settings": {"task": "toy"}, "groups": groups, "evaluate": evaluate} | more
    return fit(ToyTask(model, Numbers(), objective, **members), run or run_config(), out), model


def evaluate(product: nn.Module) -> Evaluation:
    assert not product.training
    return Evaluation({"weight": float(product.head.weight.sum())}, {"grey": torch.zeros(1, 3, 4, 4)})


@pytest.mark.slow
@pytest.mark.parametrize("log_every", [2, 3])
def test_the_speed_is_that_of_steps_alone(tmp_path: Path, log_every: int):
    def slow(product: nn.Module) -> Evaluation:
        time.sleep(0.3)
        return Evaluation({})

    train(tmp_path, run_config(steps=6, log_every=log_every, evaluate_every=2, save_every=6), evaluate=slow)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    speeds = [line["steps_per_second"] for line in lines if "steps_per_second" in line]
    assert len(speeds) == 6 // log_every
    assert min(speeds[1:]) > log_every / 0.3


def last_checkpoint(out: Path) -> Path:
    return max((out / "checkpoints").iterdir())


def assert_same_save(one: Path, other: Path) -> None:
    """Weights, averages and optimizer, bit for bit."""
    assert last_checkpoint(one).name == last_checkpoint(other).name
    for part in ("model", "average", "optimizer"):
        mine, theirs = (load_file(last_checkpoint(out) / f"{part}.safetensors") for out in (one, other))
        assert mine.keys() == theirs.keys() and mine
        different = [name for name in mine if not torch.equal(mine[name], theirs[name])]
        assert not different, (part, different)
    result = [load_file(out / "model/model.safetensors") for out in (one, other)]
    assert all(torch.equal(result[0][name], result[1][name]) for name in result[0])


def lines(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of seven steps without a break."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert train(out)[0].step == 7
    return out


@pytest.mark.parametrize(("stop_at", "number"), [(1, signal.SIGTERM), (3, signal.SIGHUP), (6, signal.SIGINT)])
def test_steps_are_steps_then_resume_then_steps_bit_for_bit(tmp_path: Path, whole: Path, stop_at: int, number: int):
    def stopping(model: nn.Module, batch: Any, step: int) -> Losses:
        if step == stop_at - 1:
            os.kill(os.getpid(), number)
        return objective(model, batch, step)

    report, _ = train(tmp_path / "run", objective=stopping)
    assert report == FitReport(stop_at, report.figures, number)
    assert not (tmp_path / "run/model").exists()
    report, _ = train(tmp_path / "run")
    assert (report.step, report.signal) == (7, 0)
    assert_same_save(tmp_path / "run", whole)


def test_a_finished_run_is_finished(tmp_path: Path, whole: Path):
    before = {path: path.read_bytes() for path in sorted(whole.rglob("*.safetensors"))}
    report, _ = train(whole)
    assert report.step == 7 and "weight" in report.figures
    assert {path: path.read_bytes() for path in sorted(whole.rglob("*.safetensors"))} == before


def test_the_log_of_a_resumed_run_has_each_line_once(tmp_path: Path, whole: Path):
    run = tmp_path / "run"

    def failing(model: nn.Module, batch: Any, step: int) -> Losses:
        assert step < 5, "power cut"
        return objective(model, batch, step)

    with pytest.raises(AssertionError, match="power cut"):
        train(run, objective=failing)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "los')  # a kill in the middle of a line
    train(run)
    steps = [(line["step"], "evaluate/weight" in line) for line in lines(run)]
    assert steps == [(line["step"], "evaluate/weight" in line) for line in lines(whole)]
    assert len(steps) == len(set(steps))


def test_the_log_has_means_over_the_steps_since_the_last_line(tmp_path: Path):
    seen: list[float] = []

    def noting(model: nn.Module, batch: Any, step: int) -> Losses:
        losses = objective(model, batch, step)
        seen.append(losses.losses["error"].item())
        return losses

    train(tmp_path / "run", run_config(steps=2, save_every=2), noting)
    assert lines(tmp_path / "run")[0]["loss/error"] == pytest.approx(sum(seen) / 2, rel=1e-6)


def test_workers_change_nothing(tmp_path: Path, whole: Path):
    train(tmp_path / "run", run_config(workers=1))
    assert_same_save(tmp_path / "run", whole)


def test_micro_batches_give_the_gradient_of_the_batch(tmp_path: Path):
    """Without dropout, whose masks differ, and up to the rounding of sums."""

    def plain(model: nn.Module, batch: Any, step: int) -> Losses:
        return objective(model.eval(), batch, step)

    weights, moments = [], []
    for count in (1, 2):
        out = tmp_path / str(count)
        weights.append(train(out, run_config(accumulate=count, max_grad_norm=0.0), plain)[1].state_dict())
        moments.append(load_file(last_checkpoint(out) / "optimizer.safetensors"))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moments[0], moments[1], rtol=1e-3, atol=1e-4)  # Adam's steps do not see a factor


def test_frozen_weights_stay_in_eval_mode_unchanged_and_out_of_the_saves(tmp_path: Path):
    modes: list[tuple[bool, bool]] = []

    def noting(model: nn.Module, batch: Any, step: int) -> Losses:
        modes.append((model.training, any(module.training for module in model.frozen.modules())))
        return objective(model, batch, step)

    torch.manual_seed(0)
    before = Toy().frozen.state_dict()
    _, model = train(tmp_path / "run", objective=noting)
    assert set(modes) == {(True, False)}
    assert all(torch.equal(model.frozen.state_dict()[name], before[name]) for name in before)
    saved = load_file(last_checkpoint(tmp_path / "run") / "model.safetensors")
    assert not any(name.startswith("frozen") for name in saved)
    assert saved["seen"] == 28
    assert "frozen.0.weight" in load_file(tmp_path / "run/model/model.safetensors"), "the result is complete"


def test_the_average_is_the_average_of_the_weights_and_is_what_is_exported(tmp_path: Path):
    weights: list[Tensor] = []

    def noting(model: nn.Module, batch: Any, step: int) -> Losses:
        weights.append(model.head.weight.detach().clone())
        return objective(model, batch, step)

    _, model = train(tmp_path / "run", objective=noting)
    expected = weights[0]
    for weight in [*weights[1:], model.head.weight.detach()]:
        expected = 0.9 * expected + 0.1 * weight
    exported = load_file(tmp_path / "run/model/model.safetensors")["head.weight"]
    torch.testing.assert_close(exported, expected)
    assert not torch.equal(exported, model.head.weight)


def test_a_part_of_the_model_can_be_the_result(tmp_path: Path):
    exported: dict[str, Tensor] = {}
    task = ToyTask(
        Toy(),
        Numbers(),
        objective,
        export=lambda tensors, folder: exported.update(tensors),
        product="head",
        evaluate=lambda head: Evaluation({"width": head.in_features}),
    )
    fit(task, run_config(steps=1), tmp_path / "run")
    assert exported.keys() == {"weight", "bias"}


def test_a_loss_that_is_not_finite_stops_and_names_step_and_loss(tmp_path: Path):
    def breaking(model: nn.Module, batch: Any, step: int) -> Losses:
        losses = objective(model, batch, step).losses
        return Losses({**losses, "other": losses["error"] * (float("nan") if step == 4 else 1)})

    with pytest.raises(ValueError, match=r"'other' is nan at step 5; the last checkpoint is step 3 in") as raised:
        train(tmp_path / "run", run_config(log_every=50), breaking)
    assert "\n" not in str(raised.value)
    assert last_checkpoint(tmp_path / "run").name == "step-00000003"


def test_gradients_that_are_not_finite_stop_before_their_step_is_saved(tmp_path: Path):
    """The loss is fine, and the weights would be NaN after the step."""

    def breaking(model: nn.Module, batch: Any, step: int) -> Losses:
        losses = objective(model, batch, step).losses
        if step == 5:
            next(model.parameters()).register_hook(lambda gradient: gradient * float("inf"))
        return Losses(losses)

    with refusing("the norm of the gradients of 'model' is inf at step 6; the last checkpoint is step 3 in "):
        train(tmp_path / "run", run_config(log_every=50), breaking)
    assert last_checkpoint(tmp_path / "run").name == "step-00000003"


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path):
    def spoil(model: nn.Module) -> None:
        next(model.parameters()).view(-1)[0] = float("nan")

    with refusing("cannot save step 1; there is no checkpoint yet (the model's 'body.0.weight' has NaN", kind=OSError):
        train(tmp_path / "run", run_config(save_every=1), after_step=spoil)
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_loss_that_is_not_finite_is_said_before_an_evaluation_trips_over_it(tmp_path: Path):
    def breaking(model: nn.Module, batch: Any, step: int) -> Losses:
        return Losses({"error": objective(model, batch, step).losses["error"] * (float("nan") if step == 1 else 1)})

    def evaluate(product: nn.Module) -> Evaluation:
        raise AssertionError("it was evaluated")

    with refusing("the loss 'error' is nan at step 2; there is no checkpoint yet"):
        train(tmp_path / "run", run_config(log_every=50), breaking, evaluate=evaluate)


def test_an_evaluation_that_fails_at_a_saved_step_is_made_when_the_run_goes_on(tmp_path: Path, whole: Path):
    def failing(product: nn.Module) -> Evaluation:
        raise RuntimeError("no memory")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="no memory"):
            train(tmp_path / "run", evaluate=failing)
        assert last_checkpoint(tmp_path / "run").name == "step-00000003"
    train(tmp_path / "run")
    assert_same_save(tmp_path / "run", whole)
    assert figures(tmp_path / "run") == figures(whole)


def test_a_run_that_is_stopped_does_not_wait_for_an_evaluation(tmp_path: Path, whole: Path):
    def stopping(model: nn.Module, batch: Any, step: int) -> Losses:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return objective(model, batch, step)

    def evaluate_never(product: nn.Module) -> Evaluation:
        raise AssertionError("it was evaluated")

    assert train(tmp_path / "run", objective=stopping, evaluate=evaluate_never)[0].step == 3
    train(tmp_path / "run")
    assert figures(tmp_path / "run") == figures(whole)


def figures(out: Path) -> list[tuple[int, float]]:
    """The evaluations in the log, and the last one in the last checkpoint."""
    found = [(line["step"], line["evaluate/weight"]) for line in lines(out) if "evaluate/weight" in line]
    progress = json.loads((last_checkpoint(out) / "progress.json").read_text())
    return [*found, (progress["evaluated_at"], progress["figures"]["weight"])]


def test_an_error_ends_the_workers(tmp_path: Path):
    """They ignore signals, so nothing else would end them before the process can."""

    def breaking(model: nn.Module, batch: Any, step: int) -> Losses:
        assert multiprocessing.active_children()
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        train(tmp_path / "run", run_config(workers=1), breaking)
    assert not multiprocessing.active_children()


class Broken(Numbers):
    def __init__(self, kind: type[Exception]) -> None:
        super().__init__()
        self._kind = kind

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        raise self._kind(f"no picture at {key}")


@pytest.mark.parametrize("kind", [ValueError, MemoryError])
def test_a_sample_that_fails_in_a_worker_ends_the_run_and_the_workers_with_its_own_message(
    tmp_path: Path, kind: type[Exception]
):
    said = []
    for workers in (0, 1):
        with pytest.raises(kind, match="no picture at") as raised:
            fit(ToyTask(Toy(), Broken(kind), objective), run_config(workers=workers), tmp_path / str(workers))
        said.append(str(raised.value))
    assert said[0] == said[1]
    assert "in __getitem__" in raised.value.__notes__[0]  # where it happened, for who mends it
    assert not multiprocessing.active_children()


def test_a_run_that_was_killed_before_its_first_save_starts(tmp_path: Path):
    out = tmp_path / "run"
    out.mkdir()
    (out / ".run.json.123").write_text("{")
    assert train(out, run_config(steps=1))[0].step == 1


def test_a_full_disk_leaves_the_last_save_whole(tmp_path: Path, whole: Path):
    run = tmp_path / "run"
    train(run, run_config(steps=3, save_every=3, schedule="constant"))

    def filling(model: nn.Module, batch: Any, step: int) -> Losses:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, before[1]))  # a file may not grow beyond these bytes
        return objective(model, batch, step)

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(OSError, match=r"save step 6; the last checkpoint is step 3 in .*checkpoints \(") as raised:
            train(run, run_config(log_every=50), filling)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(raised.value)
    assert [entry.name for entry in (run / "checkpoints").iterdir()] == ["step-00000003"], "and nothing half-written"
    train(run)
    assert_same_save(run, whole)


def test_the_last_saves_are_kept_and_older_ones_deleted(tmp_path: Path):
    train(tmp_path / "run", run_config(save_every=1, keep=2))
    kept = sorted(entry.name for entry in (tmp_path / "run/checkpoints").iterdir())
    assert kept == ["step-00000006", "step-00000007"]


def test_another_setting_is_an_error_that_names_it(tmp_path: Path):
    train(tmp_path / "run", run_config(steps=2))
    with pytest.raises(ValueError, match=r"holds a run with other settings of run.learning_rate, task; put them back"):
        train(tmp_path / "run", run_config(steps=2, learning_rate=0.1), settings={"task": "other"})


def test_settings_that_no_weight_depends_on_may_change(tmp_path: Path, whole: Path):
    run = tmp_path / "run"
    train(run, run_config(steps=4, log_every=1, save_every=2, keep=1))
    train(run, run_config(steps=7))
    assert_same_save(run, whole)


def test_a_run_goes_on_with_other_micro_batches_and_settings_of_memory(tmp_path: Path):
    run = tmp_path / "run"
    train(run, run_config(steps=4, accumulate=2), settings={"grad_checkpointing": True, "text_cache": 5})
    report, _ = train(run, run_config(), settings={"grad_checkpointing": False, "text_cache": 0})
    assert report.step == 7 and {line["step"] for line in lines(run)} > {2, 4, 6}


def test_a_run_that_ends_where_it_was_stopped_is_evaluated_there(tmp_path: Path):
    def stopping(model: nn.Module, batch: tuple[Tensor, Tensor], step: int) -> Losses:
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return objective(model, batch, step)

    stopped, _ = train(tmp_path / "run", objective=stopping)
    finished, _ = train(tmp_path / "run", run_config(steps=5))
    exported = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert stopped.step == finished.step == 5 and stopped.figures != finished.figures
    assert finished.figures == {"weight": pytest.approx(float(exported["head.weight"].sum()))}
    assert [line["step"] for line in lines(tmp_path / "run") if "evaluate/weight" in line] == [3, 5]


def test_the_end_of_a_cosine_may_not_change(tmp_path: Path):
    train(tmp_path / "run", run_config(steps=2, schedule="cosine"))
    with pytest.raises(ValueError, match=r"other settings of run.steps;"):
        train(tmp_path / "run", run_config(steps=3, schedule="cosine"))


def test_a_folder_of_other_files_is_refused(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"is neither empty nor a training run; choose another folder"):
        train(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_finished_run_with_fewer_steps_is_refused_by_the_step_that_it_has_finished(tmp_path: Path):
    train(tmp_path / "run", run_config(steps=3))
    before = lines(tmp_path / "run")
    with pytest.raises(ValueError, match=r"run has finished step 3, and run\.steps is 2; give it 3 or more") as raised:
        train(tmp_path / "run", run_config(steps=2))
    assert "\n" not in str(raised.value)
    assert lines(tmp_path / "run") == before


def test_a_folder_takes_one_run_at_a_time_and_another_when_its_process_has_died(tmp_path: Path, whole: Path):
    run = tmp_path / "run"
    train(run, run_config(steps=3))
    held = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with locked_elsewhere(run / ".run.lock"):
        with pytest.raises(OSError, match=r"cannot train into .*run \(another run trains into it; wait") as raised:
            train(run)
        assert "\n" not in str(raised.value)
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == held
    train(run)
    assert_same_save(run, whole)


def test_a_folder_is_locked_while_its_run_goes_on_and_free_after_it(tmp_path: Path):
    def holding(model: nn.Module, batch: Any, step: int) -> Losses:
        found.append(is_free(tmp_path / "run/.run.lock"))
        return objective(model, batch, step)

    found: list[bool] = []
    train(tmp_path / "run", run_config(steps=2), holding)
    assert found == [False, False]
    assert is_free(tmp_path / "run/.run.lock")


def test_a_save_folder_that_is_there_already_is_not_deleted(tmp_path: Path):
    """Where no locks are known, two runs may come to one checkpoint."""
    theirs = tmp_path / "run/checkpoints/.step-00000002/model.safetensors"

    def meanwhile(model: nn.Module, batch: Any, step: int) -> Losses:
        theirs.parent.mkdir(exist_ok=True)
        theirs.write_bytes(b"of another process")
        return objective(model, batch, step)

    with pytest.raises(OSError, match="cannot save step 2; there is no checkpoint yet"):
        train(tmp_path / "run", run_config(steps=2), meanwhile)
    assert theirs.read_bytes() == b"of another process"


def test_what_a_killed_export_left_is_gone_after_the_next(tmp_path: Path, whole: Path):
    def killed(tensors: dict[str, Tensor], folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half of it")
        os.kill(os.getpid(), signal.SIGKILL)

    def failing(tensors: dict[str, Tensor], folder: Path) -> None:
        raise OSError("the disk is full")

    run = tmp_path / "run"
    # All steps are taken here: a forked process can take none, once its parent has used autograd's threads.
    with pytest.raises(OSError, match="the disk is full"):
        train(run, export=failing)
    child = multiprocessing.get_context("fork").Process(target=train, args=(run,), kwargs={"export": killed})
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL and not (run / "model").exists()
    train(run)
    assert_same_save(run, whole)
    assert [path for path in run.rglob(".*") if path.name != ".run.lock"] == []


def test_an_export_that_fails_leaves_the_model_that_was_there(tmp_path: Path):
    def failing(tensors: dict[str, Tensor], folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half of it")
        raise OSError("the disk is full")

    run = tmp_path / "run"
    train(run, run_config(steps=2))
    before = (run / "model/model.safetensors").read_bytes()
    with pytest.raises(OSError, match=r"cannot write .*model \(the disk is full\)"):
        train(run, run_config(steps=3), export=failing)
    assert [path.read_bytes() for path in (run / "model").iterdir()] == [before]


def test_a_damaged_save_is_named(tmp_path: Path):
    train(tmp_path / "run", run_config(steps=2, save_every=1))
    file = last_checkpoint(tmp_path / "run") / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"step-00000002 is damaged \(.*\); delete it to go on from the one before it"):
        train(tmp_path / "run", run_config(steps=2, save_every=1))


def test_half_precision_of_16_bits_needs_a_gpu(tmp_path: Path):
    with pytest.raises(ValueError, match=r"got precision 'fp16' without a GPU; use 'bf16' or 'no'"):
        train(tmp_path / "run", run_config(precision="fp16"))


def test_half_precision_trains_float32_weights(tmp_path: Path):
    seen: list[torch.dtype] = []

    def noting(model: nn.Module, batch: Any, step: int) -> Losses:
        seen.append(model.body[0](batch[0]).dtype)
        return objective(model, batch, step)

    _, model = train(tmp_path / "run", run_config(precision="bf16", steps=2), noting)
    assert set(seen) == {torch.bfloat16}
    assert model.head.weight.dtype == torch.float32


def test_an_epoch_has_every_sample_once_and_another_order():
    orders = [shuffled(50, seed=3, epoch=epoch).tolist() for epoch in (0, 1)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(50))
    assert orders[0] == shuffled(50, seed=3, epoch=0).tolist()


def test_batches_walk_through_epochs_and_drop_nothing(tmp_path: Path):
    keys: Counter[tuple[int, int]] = Counter()

    class Noting(Numbers):
        def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
            keys[key] += 1
            return super().__getitem__(key)

    torch.manual_seed(0)
    fit(ToyTask(Toy(), Noting(10), objective), run_config(steps=5), tmp_path / "run")
    assert keys == Counter({(epoch, index): 1 for epoch in (0, 1) for index in range(10)})


def test_another_seed_is_another_order_other_dropout_and_other_random_numbers_from_the_first_sample_on(tmp_path: Path):
    def traces(seed: int, out: Path) -> list[list[Any]]:
        keys: list[Any] = []
        drawn: list[Any] = []
        dropped: list[Any] = []

        class Noting(Numbers):
            def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
                keys.append(key)
                drawn.append(torch.rand(()).item())
                return super().__getitem__(key)

        def noting(model: nn.Module, batch: Any, step: int) -> Losses:
            dropped.append(nn.functional.dropout(torch.ones(64)).tolist())
            return objective(model, batch, step)

        torch.manual_seed(0)
        fit(ToyTask(Toy(), Noting(), noting), run_config(steps=2, seed=seed), out)
        return [keys, drawn[:4], dropped]  # from the second batch on, samples come after the seed of a pass

    one, again, other = (traces(seed, tmp_path / name) for seed, name in ((0, "one"), (0, "again"), (1, "other")))
    assert one == again
    assert [mine == theirs for mine, theirs in zip(one, other, strict=True)] == [False, False, False]


def test_the_learning_rate_warms_up_then_follows_its_schedule():
    factors = [
        learning_rate_factor(step, run_config(steps=9, schedule="cosine", warmup_steps=4, final_learning_rate=0.001))
        for step in range(9)
    ]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[-1] == pytest.approx(0.1 + 0.9 * (1 + torch.tensor(0.8 * torch.pi).cos().item()) / 2)
    dropping = run_config(steps=9, schedule="multi-step", milestones=(3, 6), drop=0.5)
    assert [learning_rate_factor(step, dropping) for step in (0, 2, 3, 5, 6, 8)] == [1, 1, 0.5, 0.5, 0.25, 0.25]


def test_each_step_is_one_of_adamw_at_the_learning_rate_of_the_schedule(tmp_path: Path):
    batches: list[tuple[Tensor, Tensor]] = []

    def noting(model: nn.Module, batch: tuple[Tensor, Tensor], step: int) -> Losses:
        batches.append(batch)
        return objective(model.eval(), batch, step)  # without dropout

    schedule = {"schedule": "cosine", "warmup_steps": 3, "final_learning_rate": 0.001}
    run = run_config(steps=9, log_every=1, max_grad_norm=0.0, weight_decay=0.05, **schedule)
    _, model = train(tmp_path / "run", run, noting)
    logged = [line["learning_rate"] for line in lines(tmp_path / "run") if "learning_rate" in line]
    assert logged == [0.01 * learning_rate_factor(step, run) for step in range(9)]

    torch.manual_seed(0)
    other = Toy()
    groups = [
        {"params": [*other.body.parameters()], "lr": 0.01, "weight_decay": 0.05},
        {"params": [*other.head.parameters()], "lr": 0.02, "weight_decay": 0.1},
    ]
    optimizer = torch.optim.AdamW(groups, betas=run.betas)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, run))
    for step, batch in enumerate([*batches]):
        optimizer.zero_grad()
        objective(other.eval(), batch, step).losses["error"].backward()
        optimizer.step()
        scheduler.step()
    torch.testing.assert_close(dict(model.named_parameters()), dict(other.named_parameters()))


def test_groups_of_one_label_are_clipped_together_by_their_own_limit_or_that_of_the_run(tmp_path: Path):
    """Adam's first moment after one step is a tenth of the clipped gradient."""
    options = {
        "body.0.weight": {"clip_with": "body"},
        "body.0.bias": {"clip_with": "body"},
        "head.weight": {"clip_with": "head", "max_grad_norm": 0.02},
        "head.bias": {"clip_with": "free", "max_grad_norm": 0.0},
    }
    groups = [ParameterGroup(names=frozenset({name}), **more) for name, more in options.items()]
    train(tmp_path / "run", run_config(steps=1, log_every=1, max_grad_norm=0.01), groups=groups)
    moments = load_file(last_checkpoint(tmp_path / "run") / "optimizer.safetensors")
    norms: dict[str, float] = {}
    for name, more in options.items():
        label = str(more["clip_with"])
        norms[label] = math.hypot(norms.get(label, 0.0), 10 * moments[f"{name}/exp_avg"].norm().item())
    logged = {label: lines(tmp_path / "run")[0][f"grad_norm/{label}"] for label in norms}
    assert min(logged.values()) > 0.1, "the norms before clipping"
    assert norms == pytest.approx({"body": 0.01, "head": 0.02, "free": logged["free"]}, rel=1e-4)


def test_each_group_has_its_own_factor_and_weight_decay_and_the_betas_of_the_run():
    weights = dict(Toy().named_parameters())
    groups = [
        ParameterGroup(names=frozenset({"body.0.weight", "body.0.bias"}), learning_rate_factor=0.5),
        ParameterGroup(names=frozenset({"head.weight"}), weight_decay=0.3),
        ParameterGroup(names=frozenset({"head.bias"}), weight_decay=0.0, learning_rate_factor=2.0),
    ]
    run = run_config(weight_decay=0.1, betas=(0.5, 0.75))
    trained = {name: weight for name, weight in weights.items() if weight.requires_grad}
    (optimizer,) = build_optimizers(trained, run, groups)
    names = [{name for name in trained if any(trained[name] is x for x in g["params"])} for g in optimizer.param_groups]
    assert names == [group.names for group in groups]
    options = [(group["factor"], group["weight_decay"], group["betas"]) for group in optimizer.param_groups]
    assert options == [(0.5, 0.1, (0.5, 0.75)), (1.0, 0.3, (0.5, 0.75)), (2.0, 0.0, (0.5, 0.75))]


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch below 2.9 has no Muon")
def test_muon_moves_a_matrix_by_its_own_rate_in_every_direction(tmp_path: Path):
    """The step is near to orthogonal: its singular values are about the rate. Adam's would be up to eight times it."""
    names = frozenset(name for name, weight in Toy().named_parameters() if weight.requires_grad)
    matrix = ParameterGroup(names=frozenset({"body.0.weight"}), weight_decay=0.0, matrices=True)
    rest = ParameterGroup(names=names - matrix.names)
    run = run_config(steps=1, schedule="constant", muon_learning_rate=0.5, ema_decay=0.0)
    torch.manual_seed(0)
    before = Toy().body[0].weight.detach()
    train(tmp_path / "run", run, groups=[matrix, rest])
    after = load_file(last_checkpoint(tmp_path / "run") / "model.safetensors")["body.0.weight"]
    rows, columns = after.shape
    sizes = torch.linalg.svdvals(after - before) / max(1, rows / columns) ** 0.5
    assert sizes.median() > 0.25 and sizes.max() < 0.75


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch below 2.9 has no Muon")
@pytest.mark.parametrize(
    ("run", "more", "message"),
    [
        ({"precision": "fp16"}, {}, "with precision 'fp16'; use 'bf16' or 'no'"),
        ({}, {"sharded": True}, "with FSDP, whose shards are not matrices"),
        ({}, {"groups": [ParameterGroup(names=frozenset({"weight"}))]}, "has no matrices for Muon; leave it out"),
    ],
)
def test_muon_is_refused_where_it_does_nothing_or_harm(run: dict[str, Any], more: dict[str, Any], message: str):
    weights = dict(nn.Linear(4, 4, bias=False).named_parameters())
    arguments = {"groups": [ParameterGroup(names=frozenset(weights), matrices=True)]} | more
    with pytest.raises(ValueError, match=message):
        build_optimizers(weights, run_config(muon_learning_rate=0.1, **run), **arguments)


def test_muon_needs_a_torch_that_has_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    weights = dict(nn.Linear(4, 4, bias=False).named_parameters())
    groups = [ParameterGroup(names=frozenset(weights), matrices=True)]
    with pytest.raises(LookupError, match=r"needs torch 2\.9 or newer"):
        build_optimizers(weights, run_config(muon_learning_rate=0.1), groups)


def test_a_parameter_outside_of_all_groups_is_refused(tmp_path: Path):
    groups = [ParameterGroup(names=frozenset({"head.weight"}))]
    with pytest.raises(AssertionError, match=r"not in exactly one group: \['body.0.bias'"):
        train(tmp_path / "run", groups=groups)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), NO_MEMORY, MemoryError(),
     system_error("EIO")],
)  # fmt: skip
def test_a_machine_that_cannot_read_a_save_does_not_call_it_damaged(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    train(tmp_path / "run", run_config(steps=3))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "load_file", raising(error))
        with pytest.raises(type(error)) as raised:
            train(tmp_path / "run")
        assert raised.value is error
    train(tmp_path / "run")
    assert_same_save(tmp_path / "run", whole)


def test_too_many_open_files_are_no_missing_part_of_a_save(tmp_path: Path):
    """The library that reads it calls every file missing that it cannot open."""
    model = Toy()
    state = checkpoints.TrainState(model, (), {}, None)
    (tmp_path / "progress.json").write_text('{"figures": {}, "scaler": {}}')
    checkpoints.write_whole(checkpoints.saved_tensors(state), tmp_path)
    checkpoints.read_checkpoint(tmp_path, state)
    with pytest.raises(OSError, match="Too many open files"), no_file_handles():
        checkpoints._fill_from_whole(state, tmp_path)


def test_a_run_inside_another_into_one_folder_is_refused(tmp_path: Path):
    def nested(model: nn.Module, batch: Any, step: int) -> Losses:
        with pytest.raises(OSError, match=r"another run trains into it; wait for its end"):
            train(tmp_path / "run", run_config(steps=2))
        return objective(model, batch, step)

    train(tmp_path / "run", run_config(steps=2), nested)
    assert is_free(tmp_path / "run/.run.lock")
