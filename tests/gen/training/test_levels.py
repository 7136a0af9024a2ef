"""A generator over several ids per position, or over bits: trained, resumed, loaded, and used from the command line."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from toklip_core.cli import cli
from toklip_core.drawing import Drawing, Guidance
from toklip_core.pictures import open_picture
from toklip_core.tokenizer import load_tokenizer
from toklip_gen.generator import GeneratorConfig, load_generator
from toklip_gen.training import load_networks, task as training, train_generator
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.encoder_runs import write_toml
from tests.support.generator_runs import assert_same_run, concat, config, encode, lines, store, values
from tests.support.mean_colour import SEVERAL, several
from tests.support.small_models import SIZE, small_toklip

#: Levels of each tokenizer, and blocks over them by default.
LEVELS = {
    "mean-colour": ((300,), 0),
    "quarter-greys": ((300, 16, 5, 2), 0),
    "residual-greys": ((8, 8, 8, 8), 1),
    "colour-bits": ((2**4, 2**12, 2**12), 0),
}


@pytest.fixture(scope="module")
def stores(world):
    """Beside the world of other tests: a store with crops and a TokLIP over each tokenizer of several levels."""
    for name in SEVERAL:
        encode(world, f"{name}-crops", tokenizer=name, augment="ten-crop")
        small_toklip(tokenizer=several(name)).save_pretrained(world / f"{name}-toklip")
    return world


def settings_of(world: Path, name: str, features: str, **changes):
    """Settings of a short run over a tokenizer: TokLIP's way for concat, or else from classes."""
    data = {"tokenizer": name, "data": [store(world, f"{name}-crops")]}
    if features == "concat":
        return concat(world, **data, toklip=str(world / f"{name}-toklip"), **changes)
    return values(world, **data, **{"generator": {"features": features}} | changes)


@pytest.mark.parametrize("name", LEVELS)
def test_the_config_has_the_levels_and_the_head_that_follow_from_the_tokenizer(world, name):
    found = load_networks(config(values(world, tokenizer=name))).config
    assert (found.id_levels.sizes, found.level_blocks) == LEVELS[name]
    assert GeneratorConfig.model_validate_json(found.model_dump_json()) == found
    chosen = values(world, tokenizer=name, generator={"level_blocks": 3})
    assert load_networks(config(chosen)).config.level_blocks == 3
    deep = values(world, tokenizer=name, generator={"depth": 32})
    assert load_networks(config(deep)).config.level_blocks == (6 if name == "residual-greys" else 0)


@pytest.mark.slow
@pytest.mark.parametrize("features", ["ids", "codes", "concat"])
@pytest.mark.parametrize("name", SEVERAL)
def test_it_is_trained_resumed_bit_for_bit_and_loaded(stores, tmp_path, name, features):
    settings = config(settings_of(stores, name, features))
    train_generator(settings, tmp_path / "whole")
    loss, done = training.generator_losses, []

    def stopping(model, read):
        done.append(None)
        if len(done) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(model, read)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "generator_losses", stopping)
        assert train_generator(settings, tmp_path / "parts").signal == signal.SIGTERM
    assert train_generator(settings, tmp_path / "parts").step == 4
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    pictures, tokenizer = load_generator(tmp_path / "whole/model"), load_tokenizer(name)
    prompts = ["a red circle", "a blue square"] if features == "concat" else [0, 2]
    drawing = Drawing(guidance=Guidance(2.0))
    ids = pictures.draw(prompts, seeds=[1, 2], drawing=drawing).ids
    assert ids.shape == (2, 8, 8, len(tokenizer.codebook_sizes)) and pictures.pixels(ids).shape == (2, 3, SIZE, SIZE)
    tokenizer.embedding.refuse_ids(ids)
    begun = pictures.draw(prompts, seeds=[1, 2], drawing=drawing, prefix=ids[:, :3].flatten(1, 2)).ids
    assert torch.equal(begun, ids)


@pytest.mark.slow
@pytest.mark.parametrize("name", SEVERAL)
def test_forty_steps_lower_the_loss_which_starts_as_that_of_uniform_levels(stores, tmp_path, name):
    changes = {"run": {"steps": 40, "batch_size": 12}, "dropout": 0.0}
    train_generator(config(settings_of(stores, name, "ids", **changes)), tmp_path / "run")
    losses = [line["loss/next_id"] for line in lines(tmp_path / "run")]
    uniform = torch.tensor(LEVELS[name][0]).log().mean()
    assert losses[0] == pytest.approx(uniform.item(), abs=1e-4) and losses[-1] < 0.95 * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", SEVERAL)
def test_pixels_and_their_stored_ids_give_the_same_run(stores, tmp_path, name):
    encode(stores, f"{name}-ids", tokenizer=name)
    pixels = [{"kind": "pictures", "inputs": [str(stores / "pictures")]}]
    for kind, data in (("pixels", pixels), ("ids", [store(stores, f"{name}-ids")])):
        train_generator(config(settings_of(stores, name, "concat") | {"data": data}), tmp_path / kind)
    one, other = (load_generator(tmp_path / kind / "model").generator.state_dict() for kind in ("pixels", "ids"))
    for tensor_name, tensor in one.items():
        torch.testing.assert_close(tensor, other[tensor_name], rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", SEVERAL)
def test_the_commands_train_it_and_draw_with_it(stores, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)

    def toklip(*words: object) -> str:
        result = CliRunner().invoke(cli, [str(word) for word in words])
        assert result.exit_code == 0, (result.output, result.exception)
        return result.stdout

    write_toml(tmp_path / "run.toml", settings_of(stores, name, "concat", held_out={"scenes": 3}, run={"steps": 2}))
    assert json.loads(toklip("train", "generator", "run.toml", "--out", "run", "--json"))["step"] == 2
    given = ["--model", "run/model", "--device", "cpu"]
    toklip("generate", "a red circle", "-n", 2, "--seed", 3, "--out", "many", *given)
    toklip("generate", "a red circle", "--seed", 4, "--out", "one.png", *given)
    assert open_picture("many/0001.png").tobytes() == open_picture("one.png").tobytes()
    toklip("generate", "a red circle", "--prefix", "one.png", "--prefix-rows", 8, "--out", "again.png", *given)
    report = json.loads(
        toklip("evaluate", "generation", "scenes:validation?count=3", "--generator", "run/model", "--json")
    )
    assert {*report["match"]["pixels"]} >= {"drawn", "reconstructed"}


class Largest(TorchDispatchMode):
    """Keeps the number of entries of the largest tensor that is made."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **kwargs or {})
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.entries = max(self.entries, tensor.numel())
        return made


@pytest.mark.slow
@pytest.mark.parametrize("features", ["ids", "codes", "concat"])
def test_nothing_makes_a_table_for_a_tokenizer_of_bits(stores, tmp_path, features):
    """A table would have 2^28 rows."""
    settings = config(settings_of(stores, "colour-bits", features, run={"steps": 1}))
    with Largest() as largest:
        train_generator(settings, tmp_path / "run")
        pictures = load_generator(tmp_path / "run/model")
        ids = pictures.draw(["a red circle"] if features == "concat" else [0], seeds=[1]).ids
        pictures.pixels(ids)
    assert 0 < largest.entries < 2**22


def test_a_pyramid_is_refused_by_the_command_in_one_line(world, tmp_path):
    toml = write_toml(tmp_path / "run.toml", values(world, tokenizer="pyramid-greys"))
    result = CliRunner().invoke(cli, ["train", "generator", str(toml), "--out", str(tmp_path / "run")])
    assert result.exit_code == 1 and result.stderr.count("\n") == 1 and not (tmp_path / "run").exists()
    assert "has a pyramid of ids" in result.stderr and "name a tokenizer with one grid of ids" in result.stderr
