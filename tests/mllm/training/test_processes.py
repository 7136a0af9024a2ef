"""Two processes train the same model as one, each with all weights (DDP) or with a share of them (FSDP 2)."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from toklip_core import plugins
from toklip_mllm.training import MLLMTrainConfig, train_mllm

from tests.core.training.test_passes import FSDP2, knows_fsdp2, shard_on_cpus
from tests.support import mean_colour
from tests.support.mllm_runs import SCENES, config, exported, file_data, lines, write_world
from tests.support.processes import run_together

pytestmark = pytest.mark.slow

needs_fsdp2 = pytest.mark.skipif(not knows_fsdp2(), reason="needs FSDP 2 with sharded checkpoints")


def settings(world: Path, **changes: Any) -> MLLMTrainConfig:
    """Answers differ in length, so that processes have different numbers of tokens; some have no picture."""
    run = {"learning_rate": 1e-5, "steps": 3}
    return config(world, file_data(world), SCENES, **{"run": run, "held_out": {"scenes": 1}} | changes)


def adapters(world: Path) -> MLLMTrainConfig:
    """As the recipe llava-stage-2-lora: what is frozen in bfloat16, adapters and connector in float32."""
    run = {"learning_rate": 1e-4, "steps": 3, "precision": "bf16"}
    lora = {"rank": 2, "alpha": 4, "dropout": 0.0}
    return settings(world, run=run, lora=lora, frozen_dtype="bfloat16", held_out={})


def drawings(world: Path) -> MLLMTrainConfig:
    """With an image head; processes have different numbers of pictures to draw, mostly none in one of them."""
    run = {"learning_rate": 1e-5, "steps": 3}
    data = ({"kind": "drawings", "pictures": {"kind": "scenes", "count": 6, "background": "plain"}}, SCENES)
    head = {"train": ["connector", "language_model", "image_head"], "image_head": {}}
    return config(world, file_data(world), *data, run=run, group_by_length=False, image_z_loss=0.1, **head)


def in_two_processes(folder: Path) -> None:
    """Train with all weights in each process, then in shards, then adapters over shards."""
    plugins.registry.cache_clear()
    train_mllm(settings(folder), folder / "replicated")
    train_mllm(drawings(folder), folder / "replicated-drawings")
    if knows_fsdp2():
        os.environ.update(FSDP2 | {"FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer"})
        shard_on_cpus()
        train_mllm(settings(folder), folder / "sharded")
        train_mllm(drawings(folder), folder / "sharded-drawings")
        train_mllm(adapters(folder), folder / "sharded-adapters")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The runs of two processes, and those of one, whole and with adapters."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(mean_colour.install(folder / "site")))
        plugins.registry.cache_clear()
        write_world(folder)
        train_mllm(settings(folder), folder / "one")
        train_mllm(drawings(folder), folder / "one-drawings")
        train_mllm(adapters(folder), folder / "one-adapters")
        run_together(in_two_processes, folder, PYTHONPATH=str(folder / "site"))
        yield folder
    plugins.registry.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["", "-drawings"], ids=["answers", "drawings"])
@pytest.mark.parametrize("kind", ["replicated", pytest.param("sharded", marks=needs_fsdp2)])
def test_two_processes_agree_with_one_within_rounding(kind: str, what: str, runs: Path):
    one, two = runs / f"one{what}", runs / f"{kind}{what}"
    assert bool([*two.glob("checkpoints/*/shard-*")]) is (kind == "sharded")
    for mine, theirs in zip(lines(one), lines(two), strict=True):
        # A share of all tokens here, the mean of two shares there.
        for name in ("token_accuracy", "id_accuracy"):
            mine.pop(name, None), theirs.pop(name, None)
        assert theirs == pytest.approx(mine, rel=1e-4, abs=1e-6)
    mine, theirs = exported(one), exported(two)
    assert mine.keys() == theirs.keys()
    for name in mine:
        torch.testing.assert_close(theirs[name], mine[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.slow
@needs_fsdp2
def test_adapters_over_sharded_weights_of_half_precision_train_as_in_one_process(runs: Path):
    one, two = runs / "one-adapters", runs / "sharded-adapters"
    assert [*two.glob("checkpoints/*/shard-*")]
    for mine, theirs in zip(lines(one), lines(two), strict=True):
        assert theirs["loss/text"] == pytest.approx(mine["loss/text"], rel=2**-6)
    mine, theirs = exported(one), exported(two)
    assert mine.keys() == theirs.keys()
    for name in mine:
        torch.testing.assert_close(theirs[name], mine[name], rtol=2**-7, atol=1e-3, msg=name)
