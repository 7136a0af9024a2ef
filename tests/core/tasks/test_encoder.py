"""Runs of an encoder: exact resume, signals, a full disk, micro-batches, several processes."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from toklip_core.model import TokLIP, load_clip
from toklip_core.tasks import (
    EncoderTrainConfig,
    TeacherTrainConfig,
    encoder as distillation,
    train_encoder,
    train_teacher,
)
from toklip_core.training import FitReport
from torch import Tensor, nn

from tests.core.training.test_passes import FSDP2, assert_losses_agree, knows_fsdp2, shard_on_cpus
from tests.support.checkpoints import last
from tests.support.encoder_runs import (
    Source,
    assert_same_run,
    config,
    lines,
    pictures,
    shards,
    stored,
    values,
    write_toml,
)
from tests.support.processes import run_together

pytestmark = pytest.mark.slow

NEEDS_MUON = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch below 2.9 has no Muon")


def stopped_after(steps: int, settings: EncoderTrainConfig, out: Path) -> FitReport:
    """Train; SIGTERM comes in the step of this number."""
    clamp, done = distillation.clamp_logit_scale, []

    def stopping(model: nn.Module) -> None:
        clamp(model)
        done.append(model)
        if len(done) == steps:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distillation, "clamp_logit_scale", stopping)
        return train_encoder(settings, out)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "changes"),
    [
        (
            pictures,
            {"smallest_crop_area": 0.9, "run": {"workers": 1, "accumulate": 2}, "losses": {"token_weight": 0.1}},
        ),
        (shards, {"smallest_crop_area": 0.9, "run": {"workers": 1, "ema_decay": 0.9}}),
        (stored, {"losses": {"contrast": "sigmoid"}, "run": {"schedule": "cosine", "precision": "bf16"}}),
        pytest.param(stored, {"run": {"muon_learning_rate": 0.02}}, marks=NEEDS_MUON),
    ],
    ids=["folder", "shards", "store", "muon"],
)
def test_steps_are_steps_then_resume_then_steps_bit_for_bit(
    tmp_path: Path, world: Path, source: Callable[[Path], Source], changes: dict[str, Any]
):
    settings = config(world, source(world), **changes)
    assert train_encoder(settings, tmp_path / "whole").step == 4
    report = stopped_after(2, settings, tmp_path / "parts")
    assert (report.step, report.signal) == (2, signal.SIGTERM) and not (tmp_path / "parts/model").exists()
    assert train_encoder(settings, tmp_path / "parts").step == 4
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_other_data_is_another_run(tmp_path: Path, world: Path):
    shutil.copytree(world / "pictures", tmp_path / "pictures")
    settings = config(world, pictures(tmp_path), run={"steps": 1})
    train_encoder(settings, tmp_path / "run")
    (tmp_path / "pictures/00.txt").unlink()
    with pytest.raises(ValueError, match=r"holds a run with other settings of samples;"):
        train_encoder(settings, tmp_path / "run")


class Interrupted(NamedTuple):
    """How the command ended in a process of its own, after a signal."""

    settings: EncoderTrainConfig
    out: Path
    status: int
    error: str


@pytest.fixture(scope="module")
def interrupted(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Interrupted]:
    """A run for each signal, sent after the first checkpoint; the tokenizer is slow, so that it meets them at work."""
    folder = tmp_path_factory.mktemp("interrupted")
    changes = {"tokenizer": "mean-colour-slow", "run": {"steps": 30, "save_every": 2}}
    found = values(world, pictures(world), **changes)
    command = [sys.executable, "-m", "toklip_core", "train", "encoder", str(write_toml(folder / "run.toml", found))]
    environment = {"PYTHONPATH": str(world / "site"), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    start = partial(subprocess.Popen, env=os.environ | environment, stderr=subprocess.PIPE, text=True)
    started = {n: start([*command, "--out", str(folder / f"{n}")]) for n in (signal.SIGTERM, signal.SIGKILL)}
    waiting = dict(started)
    while waiting:
        for number, process in [*waiting.items()]:
            if list((folder / f"{number}").glob("checkpoints/step-*")) or process.poll() is not None:
                waiting.pop(number).send_signal(number)
        time.sleep(0.002)
    errors = {number: process.communicate()[1] for number, process in started.items()}
    settings = EncoderTrainConfig.model_validate(found)
    return {n: Interrupted(settings, folder / f"{n}", started[n].returncode, error) for n, error in errors.items()}


@pytest.fixture(scope="module")
def uninterrupted(interrupted: dict[int, Interrupted], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "uninterrupted"
    train_encoder(interrupted[signal.SIGKILL].settings, out)
    return out


@pytest.mark.slow
def test_a_kill_loses_at_most_the_steps_since_a_checkpoint(interrupted: dict[int, Interrupted], uninterrupted: Path):
    run = interrupted[signal.SIGKILL]
    assert run.status == -signal.SIGKILL, run.error
    assert not (run.out / "model").exists()
    train_encoder(run.settings, run.out)
    assert_same_run(run.out, uninterrupted)


@pytest.mark.slow
def test_sigterm_saves_and_stops_with_status_143(interrupted: dict[int, Interrupted], uninterrupted: Path):
    run = interrupted[signal.SIGTERM]
    assert run.status == 143, run.error
    step = int(max((run.out / "checkpoints").iterdir()).name.removeprefix("step-"))
    assert 2 <= step < 30 and f"Stopped and saved at step {step}; run the same command again to continue." in run.error
    train_encoder(run.settings, run.out)
    assert_same_run(run.out, uninterrupted)


def test_a_full_disk_leaves_the_last_save_whole(tmp_path: Path, world: Path):
    settings = config(world, pictures(world), run={"save_every": 2})
    clamp, before, done = distillation.clamp_logit_scale, resource.getrlimit(resource.RLIMIT_FSIZE), []

    def filling(model: nn.Module) -> None:
        clamp(model)
        done.append(model)
        if len(done) == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # a file may not grow beyond these bytes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distillation, "clamp_logit_scale", filling)
        try:
            with pytest.raises(OSError, match=r"cannot save step 4; the last checkpoint is step 2 in") as raised:
                train_encoder(settings, tmp_path / "run")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(raised.value)
    assert [entry.name for entry in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000002"]
    train_encoder(settings, tmp_path / "run")
    train_encoder(settings, tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


ALL_LOSSES = {"token_weight": 10.0, "pooled_weight": 100.0, "contrast_weight": 2.0}


def moments(out: Path) -> dict[str, Tensor]:
    """Adam's first moment: the gradients, decayed, of all steps."""
    return {name: x for name, x in last(out, "optimizer").items() if name.endswith("exp_avg")}


def assert_moments_agree(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert mine.keys() == theirs.keys() and {"logit_scale/exp_avg", "encoder.pos_embed/exp_avg"} <= mine.keys()
    largest = max(moment.abs().max() for moment in theirs.values()).item()
    for name, moment in theirs.items():
        torch.testing.assert_close(mine[name], moment, rtol=1e-4, atol=1e-6 * largest, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_four_micro_batches_have_every_gradient_of_the_whole_batch(tmp_path: Path, world: Path, kind: str):
    """And make the same model: in its first step Adam moves a weight by the learning rate, whatever its gradient."""
    for accumulate in (1, 4):
        run = {"steps": 1, "batch_size": 12, "accumulate": accumulate}
        settings = config(world, pictures(world), losses={"contrast": kind, **ALL_LOSSES}, run=run)
        train_encoder(settings, tmp_path / str(accumulate))
    assert_moments_agree(moments(tmp_path / "4"), moments(tmp_path / "1"))
    assert_losses_agree(lines(tmp_path / "4"), lines(tmp_path / "1"))
    assert {"loss/contrast", "loss/pooled", "loss/tokens", "cosine", "logit_scale"} <= lines(tmp_path / "1")[0].keys()
    one, four = (load_file(tmp_path / name / "model/model.safetensors") for name in "14")
    differ = {name: (four[name] - one[name]).abs() for name in one}
    assert sum((x > 1e-5).sum() for x in differ.values()) < 1e-2 * sum(x.numel() for x in differ.values())


def of_processes(world: Path, kind: str) -> EncoderTrainConfig:
    """Two steps of all losses, and an evaluation. At a small learning rate: Adam would enlarge the rounding."""
    run = {"steps": 2, "batch_size": 12, "accumulate": 2 if kind == "sigmoid" else 1, "learning_rate": 1e-6}
    losses = {"contrast": kind, **ALL_LOSSES}
    return config(world, pictures(world), losses=losses, run=run, held_out={"scenes": 6})


def tokens_alone(world: Path) -> EncoderTrainConfig:
    losses = {"token_weight": 1.0, "pooled_weight": 0.0, "contrast_weight": 0.0}
    return config(world, pictures(world), losses=losses, run={"steps": 2, "learning_rate": 1e-6})


def of_teacher(world: Path) -> TeacherTrainConfig:
    settings = {
        "image_size": 32,
        "vision": {"patch_size": 8, "stem": [8, 16, 32], "trunk": {"width": 32, "depth": 1, "heads": 2}},
        "text": {"width": 16, "heads": 2, "layers": 1, "context_length": 16},
        "data": [pictures(world)],
        "run": {"steps": 2, "batch_size": 4, "learning_rate": 1e-6, "log_every": 1},
    }
    return TeacherTrainConfig.model_validate(settings)


def in_two_processes(world: Path) -> None:
    """Both contrasts by DDP, tokens alone, a teacher, then both contrasts by FSDP 2."""
    for kind in ("softmax", "sigmoid"):
        train_encoder(of_processes(world, kind), world / f"pair/{kind}")
    train_encoder(tokens_alone(world), world / "pair/tokens")
    train_teacher(of_teacher(world), world / "pair/teacher")
    if knows_fsdp2():
        os.environ.update(FSDP2 | {"FSDP_TRANSFORMER_CLS_TO_WRAP": "Block"})
        shard_on_cpus()
        for kind in ("softmax", "sigmoid"):
            train_encoder(of_processes(world, kind), world / f"pair/sharded-{kind}")
        go_on(of_processes(world, "softmax"), world / "pair/sharded-interrupted")


def go_on(settings: EncoderTrainConfig, out: Path) -> None:
    """Train; the first evaluation fails, so the second call begins with it."""
    often = settings.model_copy(update={"run": settings.run.model_copy(update={"evaluate_every": 1, "save_every": 1})})

    def failing(model: object, held_out: object) -> None:
        raise OSError("no memory")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("toklip_core.tasks.encoder.evaluate_matcher", failing)
        with pytest.raises(OSError, match="no memory"):
            train_encoder(often, out)
    train_encoder(often, out)


@pytest.fixture(scope="module")
def pair(world: Path) -> Path:
    """The runs of two processes."""
    run_together(in_two_processes, world, PYTHONPATH=str(world / "site"))
    return world / "pair"


@pytest.fixture(scope="module")
def alone(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same runs of one process."""
    out = tmp_path_factory.mktemp("alone")
    for kind in ("softmax", "sigmoid"):
        train_encoder(of_processes(world, kind), out / kind)
    return out


@pytest.mark.slow
def test_a_sharded_run_goes_on_with_the_evaluation_that_it_lacks(pair: Path):
    if not knows_fsdp2():
        pytest.skip("these releases of torch and accelerate know no FSDP 2 with sharded checkpoints")
    assert_moments_agree(moments(pair / "sharded-interrupted"), moments(pair / "sharded-softmax"))
    steps = [line["step"] for line in lines(pair / "sharded-interrupted") if "evaluate/zero_shot_top1" in line]
    assert steps == [1, 2]


def without_biases_of_keys(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The softmax cancels the biases of keys: their gradients are rounding, which Adam enlarges to whole steps."""
    kept = dict(tensors)
    for name, tensor in tensors.items():
        if name.endswith(".qkv.bias"):
            query, _, value = tensor.chunk(3)
            kept[name] = torch.cat([query, value])
        elif name.endswith(".kv.bias"):
            kept[name] = tensor.chunk(2)[1]
    return kept


@pytest.mark.slow
@pytest.mark.parametrize("sharded", ["", "sharded-"], ids=["ddp", "fsdp2"])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_two_processes_train_as_one(alone: Path, pair: Path, kind: str, sharded: str):
    """The losses and gradients of all steps, the figures, and the model."""
    if sharded and not knows_fsdp2():
        pytest.skip("these releases of torch and accelerate know no FSDP 2 with sharded checkpoints")
    one, two = alone / kind, pair / f"{sharded}{kind}"
    assert_losses_agree(lines(two), lines(one))
    assert_moments_agree(moments(two), moments(one))
    progress = [json.loads((out / "checkpoints/step-00000002/progress.json").read_text()) for out in (two, one)]
    figures = [read["figures"] for read in progress]
    assert figures[0] == figures[1] and len(figures[0]) == 3
    models = [load_file(out / "model/model.safetensors") for out in (two, one)]
    # Adam moves a weight by 2e-6 in two steps of 1e-6; a weight of 1 has a last bit of 1.2e-7.
    mine, theirs = map(without_biases_of_keys, models)
    torch.testing.assert_close(mine, theirs, rtol=2e-7, atol=1e-7)
    assert (two / "model/config.json").read_text() == (one / "model/config.json").read_text()


def test_two_processes_distil_tokens_alone(tmp_path: Path, world: Path, pair: Path):
    """The pooling gets no gradient then, which DDP must be told."""
    train_encoder(tokens_alone(world), tmp_path / "one")
    assert_losses_agree(lines(pair / "tokens"), lines(tmp_path / "one"))
    before, after = load_clip(world / "teacher"), TokLIP.from_pretrained(tmp_path / "one/model")
    assert torch.equal(after.encoder.attn_pool.latent, before.vision.attn_pool.latent)
    assert after.logit_scale == before.logit_scale


def test_two_processes_train_a_teacher_as_one(tmp_path: Path, world: Path, pair: Path):
    train_teacher(of_teacher(world), tmp_path / "one")
    assert_losses_agree(lines(pair / "teacher"), lines(tmp_path / "one"))
    mine, theirs = (last(out, "optimizer") for out in (pair / "teacher", tmp_path / "one"))
    largest = max(x.abs().max() for name, x in theirs.items() if name.endswith("exp_avg")).item()
    for name in (name for name in theirs if name.endswith("exp_avg")):
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-4, atol=1e-6 * largest, msg=name)
