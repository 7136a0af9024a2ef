"""Interrupted training of a generator: a kill loses steps and a full disk loses a checkpoint, but never the run."""

import os
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from toklip_gen.training import task as training, train_generator

from tests.support.encoder_runs import write_toml
from tests.support.generator_runs import assert_same_run, config, values

pytestmark = pytest.mark.slow

#: What ends a run, and the status that it ends with.
SIGNALS = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143}


@pytest.fixture(scope="module")
def settings(world):
    """The tokenizer is slow, so that a signal comes at work."""
    classes = {"kind": "classes", "folder": str(world / "pictures")}
    return values(world, tokenizer="mean-colour-slow", data=[classes], run={"steps": 30, "save_every": 2})


@pytest.fixture(scope="module")
def uninterrupted(world, settings):
    train_generator(config(settings), world / "uninterrupted")
    return world / "uninterrupted"


@pytest.fixture(scope="module")
def interrupted(world, settings):
    """How the command ends after each signal, which comes after the first checkpoint: status and errors."""
    toml = write_toml(world / "run.toml", settings)
    command = [sys.executable, "-m", "toklip_core", "train", "generator", str(toml), "--out"]
    own = {"PYTHONPATH": str(world / "site"), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    start = partial(subprocess.Popen, env=os.environ | own, stderr=subprocess.PIPE, text=True)
    started = {number: start([*command, str(world / f"{number}")]) for number in SIGNALS}
    waiting = dict(started)
    while waiting:
        for number, process in [*waiting.items()]:
            if list((world / f"{number}").glob("checkpoints/step-*")) or process.poll() is not None:
                waiting.pop(number).send_signal(number)
        time.sleep(0.002)
    errors = {number: process.communicate()[1] for number, process in started.items()}
    return {number: (process.returncode, errors[number]) for number, process in started.items()}


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_the_same_command_goes_on_after_a_signal(world, settings, uninterrupted, interrupted, number):
    """A kill loses at most the steps since the last checkpoint."""
    status, errors = interrupted[number]
    assert status == SIGNALS[number], errors
    run = world / f"{number}"
    assert not (run / "model").exists()
    assert train_generator(config(settings), run).step == 30
    assert_same_run(run, uninterrupted)


def test_a_full_disk_leaves_the_last_save_whole(world, tmp_path):
    settings = config(values(world, run={"save_every": 2}))
    loss, before, done = training.generator_losses, resource.getrlimit(resource.RLIMIT_FSIZE), []

    def filling(model, read):
        done.append(None)
        if len(done) == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # a file may not grow beyond these bytes
        return loss(model, read)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "generator_losses", filling)
        try:
            with pytest.raises(OSError, match=r"cannot save step 4; the last checkpoint is step 2 in") as raised:
                train_generator(settings, tmp_path / "run")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(raised.value)
    assert [entry.name for entry in Path(tmp_path / "run/checkpoints").iterdir()] == ["step-00000002"]
    for name in ("run", "whole"):
        train_generator(settings, tmp_path / name)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
