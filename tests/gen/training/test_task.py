"""Training a generator: exact resume, two processes, data with crops and classes, refused settings, the command."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from toklip_core.cli import cli
from toklip_core.config import load_config, recipe_names
from toklip_core.drawing import Drawing, Guidance
from toklip_core.training import fit
from toklip_core.weights import weights_checksum
from toklip_gen.generator import Generator, GeneratorConfig, load_generator
from toklip_gen.training import (
    RECIPES,
    GeneratorSamples,
    GeneratorTask,
    GeneratorTrainConfig,
    collate,
    generator_losses,
    held_out_prompts,
    load_networks,
    read_batch,
    start_from,
    task as training,
    train_generator,
    with_sampled_ids,
)

from tests.core.conftest import picture
from tests.support.generator_runs import TEXT, assert_same_run, concat, config, encode, last, lines, store, values
from tests.support.processes import run_together
from tests.support.refusals import last_error
from tests.support.small_models import SIZE

EVALUATED = {
    "scheduled_sampling": 0.5,
    "held_out": {"scenes": 3},
    "sampling": {"guidance": 2.0},
    "run": {"ema_decay": 0.9, "max_grad_norm": 1.0},
}


@pytest.fixture(scope="module")
def whole(world) -> Path:
    """A run of four steps without a break, TokLIP's way."""
    train_generator(config(concat(world, **EVALUATED)), world / "whole")
    return world / "whole"


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [1, 3])
def test_steps_are_steps_then_resume_then_steps_bit_for_bit(world, whole, tmp_path, monkeypatch, stop_at):
    settings = config(concat(world, **EVALUATED))
    loss = training.generator_losses
    steps = []

    def stopping(model, read):
        if model.training:
            steps.append(None)
            if len(steps) == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
        return loss(model, read)

    with monkeypatch.context() as patch:
        patch.setattr(training, "generator_losses", stopping)
        report = train_generator(settings, tmp_path / "run")
    assert (report.step, report.signal) == (stop_at, signal.SIGTERM)
    assert train_generator(settings, tmp_path / "run").step == 4
    assert_same_run(tmp_path / "run", whole)


def several(folder: Path) -> None:
    world = Path(os.environ["WORLD"])
    sys.path.insert(0, str(world / "site"))
    train_generator(config(json.loads((folder / "settings.json").read_text())), folder / "run")


@pytest.mark.slow
def test_two_processes_agree_with_one_within_rounding(world, tmp_path):
    """Without dropout, whose random numbers are a process's own; conditions are dropped, those of the same samples."""
    changes = {"dropout": 0.0, "condition_dropout": 0.5, "run": {"learning_rate": 1e-4}}
    settings = concat(world, **changes)
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    train_generator(config(settings), tmp_path / "one")
    run_together(several, tmp_path, WORLD=str(world))
    for mine, theirs in zip(lines(tmp_path / "one"), lines(tmp_path / "run"), strict=True):
        assert theirs | {"steps_per_second": 0} == pytest.approx(mine | {"steps_per_second": 0}, rel=1e-4, abs=1e-6)
    for name, weight in last(tmp_path / "one").items():
        torch.testing.assert_close(last(tmp_path / "run")[name], weight, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("features", ["ids", "codes", "concat"])
def test_forty_steps_lower_the_loss_and_the_result_draws(world, tmp_path, features):
    more = {"toklip": str(world / "toklip")} if features == "concat" else {}
    settings = values(world, generator={"features": features}, run={"steps": 40, "batch_size": 12}, dropout=0.0, **more)
    train_generator(config(settings), tmp_path / "run")
    losses = [line["loss/next_id"] for line in lines(tmp_path / "run")]
    assert losses[-1] < 0.95 * losses[0]
    generator = load_generator(tmp_path / "run/model")
    ids = generator.draw([0, 2], seeds=[1, 2], drawing=Drawing(guidance=Guidance(2.0))).ids
    assert ids.shape == (2, 8, 8, 1) and generator.tokenizer.decode(ids).shape == (2, 3, SIZE, SIZE)


def test_half_precision_trains_without_a_complaint(world, tmp_path):
    """Warnings are errors here; residuals stay in the precision of the weights."""
    report = train_generator(config(concat(world, run={"precision": "bf16", "steps": 2})), tmp_path / "run")
    assert report.step == 2


def test_an_evaluation_has_a_loss_a_match_and_pictures(whole):
    evaluated = [line for line in lines(whole) if "evaluate/next_id" in line]
    assert len(evaluated) == 1 and evaluated[0]["evaluate/next_id"] > 0
    assert {"evaluate/match_colour", "evaluate/match_count", "evaluate/match_caption"} <= evaluated[0].keys()


def test_a_logged_loss_is_the_cross_entropy_of_uniform_ids_at_the_start(whole):
    """The head starts as zeros."""
    assert lines(whole)[0]["loss/next_id"] == pytest.approx(torch.tensor(300.0).log().item(), abs=1e-4)


def test_the_result_is_the_average_of_the_weights(whole):
    average = load_file(max((whole / "checkpoints").iterdir()) / "average.safetensors")
    exported = load_file(whole / "model/model.safetensors")
    assert all(torch.equal(exported[name], average[name]) for name in average)


def test_a_batch_from_pixels_reads_as_one_from_their_ids(world):
    """Training from pictures and from a token store of them are one thing."""
    pixels = config(concat(world, data=[{"kind": "pictures", "inputs": [str(world / "pictures")]}]))
    ids = config(concat(world, data=[store(world, "store")]))
    networks = load_networks(ids)
    batches = [collate([GeneratorSamples(settings)[0, i] for i in range(3)]) for settings in (pixels, ids)]
    reads = [read_batch(batch, networks) for batch in batches]
    assert torch.equal(reads[0].levels, reads[1].levels)
    torch.testing.assert_close(reads[0].inputs, reads[1].inputs)
    torch.testing.assert_close(reads[0].condition.values, reads[1].condition.values)


@pytest.mark.parametrize("largest_share", [0.3, 1.0])
def test_scheduled_sampling_reads_sampled_ids_at_a_share_of_the_positions_and_predicts_the_same(world, largest_share):
    """Shares of pictures are uniform up to the largest, so their mean is half of it."""
    settings = config(values(world))
    networks = load_networks(settings)
    torch.manual_seed(0)
    model = Generator(networks.config)  # its head is zero at first, so it samples all 300 ids equally often
    samples = GeneratorSamples(settings)
    batch = read_batch(collate([samples[0, place % 12] for place in range(200)]), networks)
    read = with_sampled_ids(model, batch, networks, largest_share=largest_share)
    assert torch.equal(read.levels, batch.levels) and read.condition is batch.condition
    shares = (read.inputs != batch.inputs).float().mean((1, 2)) / (299 / 300)
    assert shares.mean().item() == pytest.approx(largest_share / 2, abs=0.05 * largest_share)
    assert shares.min() < 0.1 * largest_share and 0.9 * largest_share < shares.max() < largest_share + 0.12


def test_a_sampled_id_is_read_where_it_was_sampled(world):
    """A head that gives all the chance to id i at position i."""
    settings = config(values(world))
    networks = load_networks(settings)
    model = Generator(networks.config)
    places = torch.arange(64)
    certain = 1e4 * torch.eye(64, 300)
    hook = model.head.register_forward_hook(lambda module, read, logits: logits + certain)
    samples = GeneratorSamples(settings)
    batch = read_batch(collate([samples[0, place] for place in range(12)]), networks)
    read = with_sampled_ids(model, batch, networks, largest_share=1.0)
    hook.remove()
    changed = read.inputs != batch.inputs
    assert changed.any(dim=0).float().mean() > 0.9
    assert torch.equal(read.inputs, torch.where(changed, places[:-1, None], batch.inputs))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_loss_reads_as_many_sampled_ids_as_the_settings_say(world, share):
    task = GeneratorTask(config(values(world, scheduled_sampling=share, dropout=0.0)))
    torch.nn.init.normal_(task.model.head.weight)
    prepared = task.prepare(collate([task.samples[0, place] for place in range(4)]))
    torch.manual_seed(1)
    found = task.objective(task.model, prepared, 0).losses["next_id"]
    torch.manual_seed(1)
    sampled = with_sampled_ids(task.model, prepared, task.networks, largest_share=1.0)
    losses = {0.0: generator_losses(task.model, prepared), 1.0: generator_losses(task.model, sampled)}
    assert found == losses[share].losses["next_id"] != losses[1 - share].losses["next_id"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_with_scheduled_sampling_every_weight_gets_the_gradient_of_a_pass_without_the_one_before_it(world, precision):
    """Autocast must not use a weight again that it cast in the pass without gradient."""
    task = GeneratorTask(config(concat(world, scheduled_sampling=0.5, dropout=0.0)))
    for weight in task.model.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    prepared = task.prepare(collate([task.samples[0, place] for place in range(4)]))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        task.objective(task.model, prepared, 0).losses["next_id"].backward()
    assert [name for name, weight in task.model.named_parameters() if weight.grad is None] == []


def test_a_run_starts_from_the_weights_of_another(world, whole, tmp_path):
    start = str(whole / "model")
    (tmp_path / "moved").symlink_to(world / "toklip")
    changes = {"start": start, "toklip": str(tmp_path / "moved"), "sampling": {"guidance": 1.5}, "dropout": 0.2}
    task = GeneratorTask(config(concat(world, **changes)))
    weights = load_file(whole / "model/model.safetensors")
    assert all(torch.equal(weights[name], tensor) for name, tensor in task.model.state_dict().items())
    assert task.settings["checksums"]["start"] == weights_checksum(load_generator(start).generator)
    other = concat(world, start=start, generator={"features": "concat", "depth": 1, "hidden_width": 32})
    with pytest.raises(ValueError, match="its depth is 2, and that of these settings 1; its hidden_width") as caught:
        GeneratorTask(config(other))
    assert start in str(caught.value)
    with pytest.raises(ValueError, match="its condition is"):
        GeneratorTask(config(concat(world, start=start, condition={"kind": "class", "classes": 3})))
    with pytest.raises(LookupError, match="no-such"):
        GeneratorTask(config(concat(world, start="no-such")))


def test_a_generator_whose_classes_have_another_order_is_none_to_start_from(world, tmp_path):
    train_generator(config(values(world, run={"steps": 1})), tmp_path / "run")
    names = ["class 0", "class 2", "class 1"]
    condition = {"kind": "class", "classes": 3, "names": names}
    settings = values(world, start=str(tmp_path / "run/model"), condition=condition)
    with pytest.raises(ValueError, match="has 'class 1' as class 1, and these settings 'class 2': set"):
        GeneratorTask(config(settings))


@pytest.mark.slow
@torch.no_grad()
def test_an_evaluation_has_no_larger_batches_than_a_step(world, monkeypatch):
    """More of them change the pictures and the match not at all."""
    task = GeneratorTask(config(concat(world, held_out={"scenes": 3}, run={"accumulate": 2})))
    torch.nn.init.normal_(task.model.head.weight)
    sizes, losses, draw = [], training.generator_losses, training.Sampler.draw

    def sized_losses(model, batch):
        sizes.append(len(batch.levels))
        return losses(model, batch)

    def sized_draw(sampler, condition, **how):
        sizes.append(len(condition.values))
        return draw(sampler, condition, **how)

    monkeypatch.setattr(training, "generator_losses", sized_losses)
    monkeypatch.setattr(training.Sampler, "draw", sized_draw)
    found = task.evaluate(task.model.eval())
    assert max(sizes) == 2
    held_out = held_out_prompts(config(concat(world, held_out={"scenes": 3})), task.networks, {})
    at_once = training.evaluate(task.model, held_out, task.networks, batch_size=64)
    assert max(sizes) == 32 and at_once.figures == pytest.approx(found.figures, rel=1e-5)
    torch.testing.assert_close(at_once.pictures["drawn"], found.pictures["drawn"])


def test_an_official_generator_is_one_to_start_from(world, monkeypatch):
    """Its config has no checksum of the tokenizer and no levels; both are those of the settings."""
    networks = load_networks(config(values(world)))
    model, other = Generator(networks.config), Generator(networks.config)
    torch.nn.init.normal_(other.head.weight)
    bare = {"tokenizer": {"name": "mean-colour"}, "levels": None, "kv_heads": networks.config.heads, "resize": "squash"}
    other.config = GeneratorConfig.model_validate(networks.config.model_dump() | bare)
    monkeypatch.setattr(training, "load_transformer", lambda name, dtype: other)
    start_from(model, "official", networks.tokenizer)
    assert torch.equal(model.head.weight, other.head.weight)


def test_micro_batches_have_the_gradients_of_the_whole_batch(world, tmp_path):
    """Adam's first moment after one step is a tenth of the gradient."""
    gradients = []
    for accumulate in (1, 2):
        run = {"steps": 1, "batch_size": 6, "accumulate": accumulate, "max_grad_norm": 0.0}
        settings = config(values(world, dropout=0.0, run=run))
        task = GeneratorTask(settings)
        torch.nn.init.normal_(task.model.head.weight)  # zeros would let no gradient through
        fit(task, settings.run, tmp_path / str(accumulate))
        moments = load_file(max((tmp_path / str(accumulate) / "checkpoints").iterdir()) / "optimizer.safetensors")
        gradients.append({name: 10 * x for name, x in moments.items() if name.endswith("/exp_avg")})
    whole, parted = gradients
    assert len(whole) == len([*task.model.parameters()]) and all(x.abs().max() > 1e-4 for x in whole.values())
    torch.testing.assert_close(parted, whole, rtol=1e-4, atol=1e-6)


def test_another_seed_is_other_views_other_dropped_conditions_and_other_weights(world):
    tasks = [GeneratorTask(config(values(world, condition_dropout=0.5, run={"seed": seed}))) for seed in (0, 0, 1)]
    samples = [[task.samples[0, place] for place in range(12)] for task in tasks]
    views = [[sample["ids"].tolist() for sample in each] for each in samples]
    dropped = [[sample["drop"] for sample in each] for each in samples]
    weights = [weights_checksum(task.model) for task in tasks]
    for one, again, other in (views, dropped, weights):
        assert one == again != other


@pytest.mark.parametrize(("dropout", "checkpointing"), [(0.3, False), (0.0, True)])
def test_dropout_and_checkpointing_are_those_of_the_settings(world, dropout, checkpointing):
    task = GeneratorTask(config(values(world, dropout=dropout, generator={"grad_checkpointing": checkpointing})))
    assert {module.p for module in task.model.modules() if isinstance(module, torch.nn.Dropout)} == {dropout}
    assert task.model.grad_checkpointing == checkpointing


def test_vectors_are_not_decayed_and_only_matrices_of_blocks_are_muons(world):
    rest, matrices, vectors = GeneratorTask(config(values(world))).parameter_groups()
    assert {name.split(".")[0] for name in rest.names} == {"condition", "input", "head"}
    assert matrices.matrices and all(name.startswith("blocks.") for name in matrices.names)
    assert vectors.weight_decay == 0 and all("norm" in name for name in vectors.names)


def test_weights_of_the_tokenizer_come_along(world, tmp_path):
    weights = tmp_path / "levels.txt"
    weights.write_text("0.5")
    encode(world, "half", weights=weights)
    settings = values(world, tokenizer_weights=str(weights), data=[store(world, "half")], run={"steps": 1})
    train_generator(config(settings), tmp_path / "run")
    written = json.loads((tmp_path / "run/model/config.json").read_text())
    assert (tmp_path / "run/model" / written["tokenizer"]["file"]).exists()
    load_generator(tmp_path / "run/model").draw([0], seeds=[0])


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"condition": {"kind": "class", "classes": 4}}, r": 3 classes \(such as class 0, class 1, class 2\), but"),
    ({"image_size": 30}, "image_size does not fit 'mean-colour': got a picture of 30 x 30; .* multiples of 4"),
    (
        # Before a TokLIP that is not there is looked for.
        {"tokenizer": "colour-bits", "image_size": 64, "toklip": "x", "condition": TEXT | {"encoder": "toklip"}},
        "^got the size 64, but 'colour-bits' takes 32 x 32 alone; leave out the size, or give 32$",
    ),
    ({"tokenizer": "pyramid-greys"}, "has a pyramid of ids, .* name a tokenizer with one grid of ids"),
    ({"image_size": 64}, "has ids of 32 px"),
    ({"generator": {"features": "concat"}}, "read a TokLIP: set toklip"),
    ({"toklip": "x"}, "leave it out"),
    ({"generator": {"size": "B"}}, "give a size, or width, depth and heads"),
    ({"data": [{"kind": "scenes", "count": 4}]}, "have no class"),
    ({"condition": TEXT | {"encoder": "x"}, "data": [{"kind": "classes", "folder": "x"}]}, "have no captions"),
    ({"tokenizer": None}, "name the tokenizer"),
    ({"data": [store(Path("x")), {"kind": "classes", "folder": "x"}]}, "encode all of them, or none"),
    ({"generator": {"width": 100, "heads": 3}}, r"width \(100\) over heads \(3\) must be a multiple of 4"),
    ({"generator": {"width": 2**30}}, "less than or equal to 1048576"),
    ({"sampling": {"prompts": [7]}}, "numbers from 0 to 2"),
    ({"condition_dropout": 0.0}, "but guidance needs samples trained without their condition: set"),
    ({"resize": "squash", "data": [{"kind": "classes", "folder": "x"}]}, "'classes' are cropped: set resize = 'crop'"),
    ({"sampling": {"top_k": 301}}, "^the generator of these settings: got top_k = 301; wanted "),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_settings_that_do_not_fit_are_one_line(world, tmp_path, changes, message):
    settings = values(world, **changes)
    with pytest.raises(ValueError, match=message):
        train_generator(config(settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_text_tower_is_read_only_where_texts_are(world):
    for changes, read in (({}, True), ({"condition": {"kind": "class", "classes": 3}}, False)):
        assert (load_networks(config(concat(world, **changes))).toklip.text is not None) is read


@pytest.mark.parametrize("flag", [False, True])
def test_gradient_checkpointing_is_a_setting_of_the_generator_that_is_trained(world, flag):
    task = GeneratorTask(config(values(world, generator={"grad_checkpointing": flag})))
    assert task.model.grad_checkpointing is flag


def test_the_config_says_how_pictures_were_made_square(world):
    assert load_networks(config(values(world, resize="squash"))).config.resize == "squash"


def test_a_store_of_other_weights_is_refused(world, tmp_path):
    weights = tmp_path / "levels.txt"
    weights.write_text("0.25")
    settings = values(world, tokenizer_weights=str(weights))
    with pytest.raises(ValueError, match=r"store was made with the tokenizer 'mean-colour' \(sha256 \w{16}\), and"):
        train_generator(config(settings), tmp_path / "run")


def test_a_toklip_over_another_tokenizer_is_refused(world, tmp_path):
    settings = concat(world, tokenizer="mean-colour-slow")
    with pytest.raises(ValueError, match="was made with the tokenizer 'mean-colour' "):
        load_networks(config(settings))


def test_without_dropped_conditions_a_generator_is_trained_to_draw_without_guidance(world):
    assert config(values(world, condition_dropout=0.0, sampling={"guidance": 1.0})).condition_dropout == 0


def test_frozen_networks_follow_the_model_to_an_evaluation_before_the_first_batch(world, monkeypatch):
    """As when a run goes on whose last evaluation is missing; the meta device stands for a GPU."""
    monkeypatch.setattr(training, "_draw", lambda *arguments: torch.zeros(1, 3, 8, 8))
    task = GeneratorTask(config(concat(world, sampling={"prompts": ["a red circle"]})))
    task.evaluate(task.model.to("meta"))
    found = [*task.networks.inputs.encoder.parameters(), *task.networks.toklip.text.parameters()]
    assert {weight.device.type for weight in found} == {task.networks.tokenizer.device.type} == {"meta"}


def test_other_settings_do_not_go_on_with_a_run(world, whole):
    with pytest.raises(ValueError, match="holds a run with other settings of condition_dropout"):
        train_generator(config(concat(world, condition_dropout=0.3, **EVALUATED)), whole)


@pytest.mark.slow
def test_a_run_does_not_go_on_over_other_rows_of_as_many_pictures(world, tmp_path):
    shutil.copytree(world / "pictures", tmp_path / "pictures")
    encode(tmp_path, "store")
    settings = values(world, data=[store(tmp_path, "store")], run={"steps": 1})
    train_generator(config(settings), tmp_path / "run")
    shutil.rmtree(tmp_path / "store")
    for number, path in enumerate(sorted(tmp_path.glob("pictures/*/*.png"))):
        picture(50 + number).save(path)
    encode(tmp_path, "store")
    with pytest.raises(ValueError, match="holds a run with other settings of checksums"):
        train_generator(config(settings), tmp_path / "run")


def test_the_second_stage_goes_on_with_the_generator_of_the_first():
    one, two = (load_config(f"scenes-tiny{end}", GeneratorTrainConfig, (), RECIPES) for end in ("", "-stage-2"))
    assert two.scheduled_sampling and not one.scheduled_sampling
    for name in ("image_size", "toklip", "generator", "condition", "data", "sampling"):
        assert getattr(one, name) == getattr(two, name), name


@pytest.mark.parametrize("name", recipe_names(RECIPES))
def test_recipes_are_settings(name):
    assert load_config(name, GeneratorTrainConfig, (), RECIPES).data


#: Arguments of train_c2i.py of FoundationVision/LlamaGen, by their defaults and scripts/autoregressive/train_c2i.sh.
OFFICIAL = {
    "batch_size": 256,
    "learning_rate": 1e-4,
    "schedule": "constant",
    "betas": (0.9, 0.95),
    "weight_decay": 0.05,
    "max_grad_norm": 1.0,
    "precision": "bf16",
    "steps": 300 * (1_281_167 // 256),
    "ema_decay": 0.0,
}


@pytest.mark.parametrize("name", [name for name in recipe_names(RECIPES) if name.startswith("llamagen")])
def test_recipes_of_llamagen_have_the_official_values(name):
    settings = load_config(name, GeneratorTrainConfig, (), RECIPES)
    assert {key: getattr(settings.run, key) for key in OFFICIAL} == OFFICIAL
    assert (settings.dropout, settings.condition_dropout, settings.image_size) == (0.1, 0.1, 256)
    assert settings.condition.classes == 1000 and all(source.crops for source in settings.data)


@pytest.mark.parametrize("size", ["b", "l"])
def test_recipes_of_llamagen_have_the_published_sizes(size):
    published = {"b": 110.9e6, "l": 342.9e6}[size]
    settings = load_config(f"llamagen-{size}-ids", GeneratorTrainConfig, (), RECIPES)
    with torch.device("meta"):
        sizes = settings.generator.sizes._asdict()
        ids = {"tokenizer": {"name": "x"}, "codebook_sizes": (16384,), "image_size": (256, 256), "grid": (16, 16)}
        model = Generator(GeneratorConfig(**ids, condition=settings.condition, **sizes))
    assert sum(weight.numel() for weight in model.parameters()) == pytest.approx(published, rel=1e-3)


def test_the_command_lists_recipes_and_trains(world, tmp_path):
    listed = CliRunner().invoke(cli, ["train", "generator", "--list"])
    assert "llamagen-b-concat" in listed.stdout and "scenes-tiny" in listed.stdout
    toml = tmp_path / "run.toml"
    toml.write_text(
        f"""
tokenizer = "mean-colour"
image_size = {SIZE}
[generator]
width = 16
depth = 1
heads = 2
[condition]
kind = "class"
classes = 3
[[data]]
kind = "store"
store = "{world / "crops"}"
[run]
steps = 2
batch_size = 2
learning_rate = 1e-3
"""
    )
    arguments = ["train", "generator", str(toml), "--out", str(tmp_path / "run"), "--json"]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0 and json.loads(result.stdout)["step"] == 2
    bad = CliRunner().invoke(cli, [*arguments, "--set", "generator.features=semantic"])
    assert bad.exit_code == 1 and bad.stderr.count("\n") == 1
    last_error(bad.stderr, "generator.features")
    assert CliRunner().invoke(cli, ["train", "generator"]).exit_code == 2


def evaluated(*arguments: Any) -> Any:
    return CliRunner().invoke(cli, ["evaluate", "generation", *map(str, arguments), "--device", "cpu"])


@pytest.mark.slow
def test_a_generator_of_texts_is_measured_on_captions_of_scenes(world, whole):
    judge = ["--clip", world / "toklip", "--extractor", world / "toklip"]
    arguments = ["scenes:validation?count=5", "--generator", whole / "model", *judge]
    result = evaluated(*arguments, "--json", "--batch-size", 2)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert {*report["match"]} == {"pixels", "model"}
    assert report["match"]["pixels"]["scenes"]["colour"] == 1
    assert report["frechet"] > 0 and report["clip_score"] >= 0
    assert "guidance 2, temperature 1" in report["protocol"]["drawn"]
    assert json.loads(evaluated(*arguments, "--json").stdout)["match"] == report["match"], "batches change nothing"
    assert "judge" in evaluated(*arguments).stdout


def test_a_generator_of_classes_is_measured_on_as_many_pictures_of_each(world, tmp_path):
    train_generator(config(values(world, run={"steps": 1})), tmp_path / "run")
    model, features = tmp_path / "run/model", ["--extractor", world / "toklip"]
    arguments = ["--generator", model, "--per-class", 2, *features, "--size", 16, "--npz", tmp_path / "s.npz"]
    result = evaluated(*arguments, "--json", "--top-k", 5)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["pictures"] == 6 and "2 pictures of each of 3 classes" in report["protocol"]["drawn"]
    assert np.load(tmp_path / "s.npz")["arr_0"].shape == (6, 16, 16, 3)
    wrong = evaluated("scenes:held-out?count=2", "--generator", model)
    assert wrong.exit_code == 1 and "draws classes, but scenes have captions" in wrong.stderr


def test_what_does_not_go_together_is_said(whole):
    result = evaluated("scenes:train", "--generator", whole / "model", "--reference", "adm-imagenet-256")
    assert result.exit_code == 2 and "--reference has no effect with captions of scenes" in result.stderr
    wrong = evaluated("--generator", whole / "model", "--per-class", 1, "--extractor", "toklip-tny")
    assert wrong.exit_code == 1 and wrong.stderr.count("\n") == 1
