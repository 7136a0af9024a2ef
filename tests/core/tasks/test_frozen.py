"""Frozen tokenizer and teacher in an encoder's training: their outputs, from pictures or a store, and their weights."""

import math
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from toklip_core.captioned import CaptionedSamples
from toklip_core.config import load_config, validated
from toklip_core.model import CLIP, SemanticEncoder, TextTower, TokLIP, TrunkConfig, encoder_from_tower, load_clip
from toklip_core.pictures import normalized
from toklip_core.tasks import EncoderTask, EncoderTrainConfig, EncoderTraining, initial_encoder, train_encoder
from toklip_core.tokenizer import Tokenizer, load_tokenizer
from toklip_core.training import parameter_groups
from toklip_core.weights import weights_checksum
from torch import Tensor, nn

from tests.support.checkpoints import last
from tests.support.encoder_runs import (
    CAPTIONS,
    Source,
    assert_same_run,
    config,
    encode,
    lines,
    pictures,
    small_teacher,
    stored,
    values,
    write_toml,
)
from tests.support.mean_colour import MeanColour
from tests.support.small_models import SIZE, TRUNK


@pytest.mark.slow
def test_stored_ids_and_features_train_as_pixels_do(tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch):
    """In batches of all the data: the order of a store is another. The networks that made the store are not called."""
    settings = partial(config, world, run={"batch_size": 12, "steps": 3}, losses={"pooled_weight": 100.0})
    train_encoder(settings(pictures(world)), tmp_path / "pixels")

    def refuse(*arguments: object) -> None:
        raise AssertionError("a network was called that should not be")

    monkeypatch.setattr(sys.modules["mean_colour"].MeanColour, "encode", refuse)
    monkeypatch.setattr(CLIP, "image_tokens", refuse)
    monkeypatch.setattr("timm.models.vision_transformer.VisionTransformer.forward_features", refuse)
    train_encoder(settings(stored(world)), tmp_path / "store")
    mine, theirs = lines(tmp_path / "store"), lines(tmp_path / "pixels")
    assert mine[0]["loss/contrast"] == pytest.approx(theirs[0]["loss/contrast"], rel=1e-6), "it reads no feature"
    for one, other in zip(mine, theirs, strict=True):  # float16 moves a feature by 2^-12 of itself at most
        assert one["cosine"] == pytest.approx(other["cosine"], abs=5e-4)
        for name in ("loss/contrast", "loss/pooled"):
            assert one[name] == pytest.approx(other[name], rel=2e-3), name


def test_random_initial_values_are_not_the_towers(world: Path):
    teacher = load_clip(world / "teacher")
    starts = [
        initial_encoder(config(world, pictures(world), initial_values=of), load_tokenizer("mean-colour"), teacher)
        for of in ("teacher", "random")
    ]
    tower = teacher.vision.state_dict()["blocks.0.attn.qkv.weight"]
    assert [torch.equal(start.blocks[0].attn.qkv.weight, tower) for start in starts] == [True, False]
    assert starts[0].config == starts[1].config


@pytest.mark.slow
def test_an_encoder_that_is_trained_without_the_causal_mask_is_loaded_without(tmp_path: Path, world: Path):
    train_encoder(config(world, stored(world), causal=False, initial_values="random"), tmp_path / "run")
    model = TokLIP.from_pretrained(tmp_path / "run/model")
    ids = torch.arange(64).view(1, 8, 8, 1)
    changed = ids.clone()
    changed[0, -1, -1] = 0
    assert not torch.equal(model.encode_ids(ids).tokens[0, 0], model.encode_ids(changed).tokens[0, 0])


@pytest.mark.slow
def test_it_learns(tmp_path: Path, world: Path):
    run = {"steps": 60, "batch_size": 12, "learning_rate": 3e-3, "log_every": 5, "warmup_steps": 10}
    train_encoder(config(world, stored(world), run=run, losses={"pooled_weight": 100.0}), tmp_path / "run")
    first, *_, final = lines(tmp_path / "run")
    assert final["cosine"] > first["cosine"] and final["loss/pooled"] < 0.6 * first["loss/pooled"]
    assert final["loss/contrast"] < 0.85 * first["loss/contrast"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_each_loss_is_as_large_as_its_weight_says(tmp_path: Path, world: Path, kind: str):
    weights = {"contrast_weight": 1.0, "pooled_weight": 10.0, "token_weight": 0.5}
    runs = {"plain": {}, **{name: {name: 3 * weight} for name, weight in weights.items()}}
    for run, changes in runs.items():
        losses = {"contrast": kind, **weights, **changes}
        train_encoder(config(world, pictures(world), losses=losses, run={"steps": 1}), tmp_path / run)
    logged = {run: lines(tmp_path / run)[0] for run in runs}
    names = {"contrast_weight": "loss/contrast", "pooled_weight": "loss/pooled", "token_weight": "loss/tokens"}
    for weight, changed in names.items():
        for name in names.values():
            factor = 3 if name == changed else 1
            assert logged[weight][name] == pytest.approx(factor * logged["plain"][name], rel=1e-5), (weight, name)


def refused(settings: EncoderTrainConfig, out: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        train_encoder(settings, out)
    assert "\n" not in str(raised.value)
    assert not out.exists(), "nothing is written"


def test_a_store_of_another_tokenizer_is_refused(tmp_path: Path, world: Path):
    (tmp_path / "gamma.txt").write_text("0.5")
    settings = config(world, stored(world), tokenizer_weights=tmp_path / "gamma.txt")
    message = r"was made with the tokenizer 'mean-colour' \(sha256 \w{16}\), and this is 'mean-colour' \(sha256 "
    refused(settings, tmp_path / "run", message)


def test_a_store_of_another_teacher_is_refused(tmp_path: Path, world: Path):
    small_teacher(2).save_pretrained(tmp_path / "other")
    settings = config(world, stored(world), teacher=str(tmp_path / "other"))
    message = r"has features of another teacher, 'teacher' \(sha256 \w{16}\), than '.*other' \(\w{16}\); name that"
    refused(settings, tmp_path / "run", message)


def test_a_store_without_features_serves_the_contrast_alone(tmp_path: Path, world: Path):
    source = encode(world, tmp_path / "bare")
    message = r"needs the teacher's features, .* encode with --teacher .*teacher, or set pooled_weight to 0"
    refused(config(world, source), tmp_path / "run", message)
    assert train_encoder(config(world, source, losses={"pooled_weight": 0.0}), tmp_path / "run").step == 4
    assert "loss/pooled" not in lines(tmp_path / "run")[0]


def test_a_store_has_no_tokens_of_the_teacher(tmp_path: Path, world: Path):
    settings = config(world, stored(world), losses={"token_weight": 1.0})
    refused(settings, tmp_path / "run", r"token_weight needs pixels, and the data is a token store; set it to 0")


def test_a_size_that_the_tokenizer_cannot_take_is_refused(tmp_path: Path, world: Path):
    settings = config(world, pictures(world), image_size=30)
    line = "image_size does not fit 'mean-colour': got a picture of 30 x 30; its sides must be multiples of 4"
    refused(settings, tmp_path / "run", line)


def test_a_teacher_with_another_number_of_tokens_is_refused(tmp_path: Path, world: Path):
    small_teacher(2, patch_size=8).save_pretrained(tmp_path / "other")
    settings = config(world, pictures(world), teacher=str(tmp_path / "other"), losses={"token_weight": 1.0})
    message = r"losses.token_weight compares the tokens of a grid of 8 x 8 with the teacher's of 4 x 4; set it to 0, or"
    refused(settings, tmp_path / "run", message)


class Wide(MeanColour):
    """The cells of MeanColour on a grid of another shape with as many positions."""

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return 4, 16

    def ids_of(self, pixels: Tensor) -> Tensor:
        return super().ids_of(pixels).reshape(-1, 4, 16, 1)


@pytest.mark.parametrize(
    ("name", "changes"),
    [("losses.token_weight", {"losses": {"token_weight": 1.0}}), ("projector_pictures", {"projector_pictures": 4})],
)
def test_a_teacher_with_as_many_tokens_on_another_grid_is_refused(world: Path, name: str, changes: dict[str, Any]):
    tokenizer, teacher = Tokenizer("wide", Wide()), load_clip(world / "teacher")
    message = f"^{name} compares the tokens of a grid of 4 x 16 with the teacher's of 8 x 8; set it to 0, or take a"
    with pytest.raises(ValueError, match=message):
        EncoderTask(config(world, pictures(world), **changes), tokenizer, teacher)
    EncoderTask(config(world, pictures(world)), tokenizer, teacher)


def test_a_teacher_that_does_not_exist_is_named(tmp_path: Path, world: Path):
    with pytest.raises(FileNotFoundError, match=r"nobody' is not a model folder: it has no config.json"):
        train_encoder(config(world, pictures(world), teacher=str(tmp_path / "nobody")), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses": {"contrast_weight": 0, "pooled_weight": 0}}, "losses: all weights are 0; give one"),
        ({"run": {"batch_size": 1}}, "with run.batch_size 1 there is no other pair to contrast with"),
        ({"held_out": {"imagenet": True}}, "held_out: imagenet says what the classes are; give their folder"),
        ({"held_out": {"scenes": 3, "captions": "c.jsonl"}}, "held_out: give scenes, or classes and captions"),
    ],
)
def test_settings_that_contradict_one_another_are_refused(world: Path, changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        validated(EncoderTrainConfig, values(world, pictures(world), **changes), "mine.toml")


def test_a_contrast_without_weight_is_refused_where_it_is_all_that_was_typed(tmp_path: Path, world: Path):
    off = write_toml(tmp_path / "off.toml", values(world, pictures(world), losses={"contrast_weight": 0}))
    with pytest.raises(ValueError, match='losses: contrast has no effect with contrast_weight 0; set a weight, or set'):
        load_config(off, EncoderTrainConfig, ["losses.contrast=sigmoid"])
    sigmoid = write_toml(tmp_path / "sigmoid.toml", values(world, pictures(world), losses={"contrast": "sigmoid"}))
    assert not load_config(sigmoid, EncoderTrainConfig, ["losses.contrast_weight=0"]).losses.contrast_weight


@pytest.mark.parametrize("losses", [{"contrast": "sigmoid"}, {"contrast_weight": 0}])
def test_one_pair_at_a_time_is_enough_where_no_softmax_contrasts_it(world: Path, losses: dict[str, Any]):
    assert config(world, pictures(world), losses=losses, run={"batch_size": 1}).run.batch_size == 1


@pytest.fixture
def texts_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a text tower reads from here on."""
    read: list[str] = []
    features = TextTower.features

    def noting(self: TextTower, texts: list[str]) -> Tensor:
        read.extend(texts)
        return features(self, texts)

    monkeypatch.setattr(TextTower, "features", noting)
    return read


def test_each_caption_of_a_store_is_read_once(tmp_path: Path, world: Path, texts_read: list[str]):
    train_encoder(config(world, stored(world)), tmp_path / "run")
    assert texts_read == sorted(CAPTIONS)


@pytest.mark.parametrize("source", [stored, pictures])
def test_other_captions_are_read_with_their_batches(tmp_path: Path, world: Path, texts_read: list[str], source: Any):
    """Those that are more than are kept, and those that are not known beforehand."""
    train_encoder(config(world, source(world), text_cache=len(CAPTIONS) - 1), tmp_path / "run")
    assert len(texts_read) == 16 and {*texts_read} == {*CAPTIONS}


def test_kept_captions_change_no_loss_beyond_rounding(tmp_path: Path, world: Path):
    for kept in (0, 100):
        train_encoder(config(world, stored(world), text_cache=kept), tmp_path / str(kept))
    for one, other in zip(lines(tmp_path / "0"), lines(tmp_path / "100"), strict=True):
        assert one["loss/contrast"] == pytest.approx(other["loss/contrast"], rel=1e-4)


def test_without_a_contrast_no_caption_is_read(tmp_path: Path, world: Path, texts_read: list[str]):
    train_encoder(config(world, stored(world), losses={"contrast_weight": 0.0}), tmp_path / "run")
    assert texts_read == [] and "loss/contrast" not in lines(tmp_path / "run")[0]


def test_without_distillation_the_teachers_vision_tower_reads_no_picture(
    tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*arguments: object) -> None:
        raise AssertionError("the teacher was asked for tokens that no loss needs")

    monkeypatch.setattr(CLIP, "image_tokens", refuse)
    losses = {"pooled_weight": 0.0, "token_weight": 0.0}
    train_encoder(config(world, pictures(world), losses=losses, run={"steps": 1}), tmp_path / "run")
    assert {name for name in lines(tmp_path / "run")[0] if name.startswith("loss/")} == {"loss/contrast"}


def test_a_batch_that_passes_twice_is_read_once(tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch):
    sizes: list[int] = []
    tokens = CLIP.image_tokens

    def noting(self: CLIP, pixels: Tensor) -> tuple[Tensor, Tensor]:
        sizes.append(len(pixels))
        return tokens(self, pixels)

    monkeypatch.setattr(CLIP, "image_tokens", noting)
    train_encoder(config(world, pictures(world), run={"steps": 3, "accumulate": 2}), tmp_path / "run")
    assert sizes == [2] * 6


def test_the_inputs_are_what_tokenizer_and_teacher_say(world: Path):
    settings = config(world, pictures(world), losses={"token_weight": 1.0})
    teacher, tokenizer = load_clip(world / "teacher"), load_tokenizer("mean-colour")
    levels = torch.randint(0, 256, (3, 3, SIZE, SIZE), dtype=torch.uint8)
    inputs = EncoderTask(settings, tokenizer, teacher).prepare({"rgb": levels, "captions": CAPTIONS[:3]})
    pixels = normalized(levels)
    assert torch.equal(inputs.codes, tokenizer.embed(tokenizer.encode(pixels)))
    assert torch.equal(inputs.pooled, teacher.image_features(pixels))
    assert torch.equal(inputs.tokens, teacher.image_tokens(pixels)[0])
    assert torch.equal(inputs.text, teacher.text_features(CAPTIONS[:3]))
    assert not any(x.requires_grad for x in inputs)


def task_of(settings: EncoderTrainConfig) -> EncoderTask:
    return EncoderTask(settings, load_tokenizer("mean-colour"), load_clip(settings.teacher))


def test_another_seed_is_other_crops_and_other_weights(world: Path):
    crop = {"smallest_crop_area": 0.5}
    tasks = [task_of(config(world, pictures(world), run={"seed": seed}, **crop)) for seed in (0, 0, 1)]
    crops = [task.samples[0, 0]["rgb"].tolist() for task in tasks]
    projectors = [weights_checksum(task.model.encoder.projector) for task in tasks]
    for one, again, other in (crops, projectors):
        assert one == again != other


def test_pictures_are_cropped_as_the_settings_say(world: Path):
    settings = config(world, pictures(world), smallest_crop_area=0.5)
    areas = {"image_size": SIZE, "resize": settings.resize, "seed": 0, "smallest_crop_area": 0.5}
    task, crops = task_of(settings), CaptionedSamples(settings.data, **areas)
    whole = CaptionedSamples(settings.data, **areas | {"smallest_crop_area": 1.0})
    for place in range(3):
        assert torch.equal(task.samples[0, place]["rgb"], crops[0, place]["rgb"])
        assert not torch.equal(task.samples[0, place]["rgb"], whole[0, place]["rgb"])


def encoder_of(teacher: CLIP) -> SemanticEncoder:
    """As a run of seed 0 starts it."""
    torch.manual_seed(0)
    return encoder_from_tower(teacher.vision, codebook_dim=1, grid=(8, 8))


def test_what_is_frozen_stays_and_is_not_saved(tmp_path: Path, world: Path):
    train_encoder(config(world, pictures(world)), tmp_path / "run")
    teacher, model = load_clip(world / "teacher"), TokLIP.from_pretrained(tmp_path / "run/model")
    assert weights_checksum(model.text) == weights_checksum(teacher.text)
    assert model.tokenizer.checksum == load_tokenizer("mean-colour").checksum
    trained, started = model.encoder.state_dict(), encoder_of(teacher).state_dict()
    assert last(tmp_path / "run", "model").keys() == {"logit_scale", *(f"encoder.{name}" for name in trained)}
    assert [name for name in trained if torch.equal(trained[name], started[name])] == [], "all of it is trained"


@pytest.mark.slow
@pytest.mark.parametrize(("start", "end"), [(300.0, 100.0), (0.5, 1.0)])
def test_the_temperature_stays_between_1_and_100(tmp_path: Path, world: Path, start: float, end: float):
    small_teacher(1, logit_scale=start).save_pretrained(tmp_path / "teacher")
    train_encoder(config(world, pictures(world), teacher=str(tmp_path / "teacher"), run={"steps": 2}), tmp_path / "run")
    assert lines(tmp_path / "run")[0]["logit_scale"] == pytest.approx(start)
    assert 0 <= last(tmp_path / "run", "model")["logit_scale"] <= math.log(100)
    assert TokLIP.from_pretrained(tmp_path / "run/model").logit_scale.exp().item() == pytest.approx(end, rel=1e-2)


@pytest.mark.parametrize(("weight", "kept"), [(0.0, 300.0), (1.0, 100.0)])
def test_a_temperature_that_is_not_trained_stays_the_teachers(world: Path, weight: float, kept: float):
    settings = config(world, pictures(world), losses={"contrast_weight": weight})
    task = EncoderTask(settings, load_tokenizer("mean-colour"), small_teacher(1, logit_scale=300.0))
    with torch.no_grad():
        task.after_step(task.model)
    assert task.model.logit_scale.exp().item() == pytest.approx(kept)


CLASS_TOKEN = TrunkConfig(width=32, depth=1, heads=2, pooling="class_token", pre_norm=True, output_dim=32)


@pytest.mark.parametrize(("trunk", "learnt"), [(TRUNK, "attn_pool.latent"), (CLASS_TOKEN, "class_token")])
def test_matrices_alone_are_decayed(world: Path, trunk: TrunkConfig, learnt: str):
    """Not norms, biases, positions, learnt tokens and temperature; and every parameter is in one group."""
    losses = config(world, pictures(world), losses={"contrast": "sigmoid"}).losses
    teacher = small_teacher(0, trunk=trunk)
    training = EncoderTraining(encoder_of(teacher), teacher, losses)
    groups = parameter_groups(training)
    decayed = [name for group in groups for name in group.names if group.weight_decay is None]
    rest = [name for group in groups for name in group.names if group.weight_decay == 0.0]
    matrices = {f"{name}.weight" for name, module in training.named_modules() if isinstance(module, nn.Linear)}
    assert {*decayed} == matrices
    assert sorted(decayed + rest) == sorted(name for name, _ in training.named_parameters())
    assert {"encoder.pos_embed", "encoder.norm.weight", f"encoder.{learnt}", "logit_scale", "logit_bias"} <= {*rest}


def test_the_projector_can_learn_faster(world: Path):
    settings = config(world, pictures(world), projector_learning_rate_factor=5.0)
    task = EncoderTask(settings, load_tokenizer("mean-colour"), small_teacher(0))
    groups = task.parameter_groups()
    fast = {name for group in groups for name in group.names if group.learning_rate_factor == 5.0}
    assert fast == {f"encoder.projector.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
    assert sum(len(group.names) for group in groups) == len([*task.model.parameters()])


def test_a_model_folder_carries_the_weights_of_its_tokenizer(tmp_path: Path, world: Path):
    weights = tmp_path / "gamma.txt"
    weights.write_text("0.5")
    train_encoder(config(world, pictures(world), tokenizer_weights=weights, run={"steps": 1}), tmp_path / "run")
    weights.unlink()
    shutil.move(tmp_path / "run/model", tmp_path / "elsewhere")
    model = TokLIP.from_pretrained(tmp_path / "elsewhere")
    assert torch.equal(model.tokenizer.module.levels, MeanColour(gamma=0.5).levels)
    (tmp_path / "elsewhere/tokenizer.txt").write_text("1.0")
    with pytest.raises(ValueError, match="was made with the tokenizer 'mean-colour'"):
        TokLIP.from_pretrained(tmp_path / "elsewhere")


@pytest.mark.slow
def test_gradient_checkpointing_changes_no_number(tmp_path: Path, world: Path):
    for flag in (False, True):
        settings = config(world, pictures(world), grad_checkpointing=flag)
        task = EncoderTask(settings, load_tokenizer("mean-colour"), load_clip(world / "teacher"))
        assert task.model.encoder.grad_checkpointing is flag
        train_encoder(settings, tmp_path / str(flag))
    assert_same_run(tmp_path / "True", tmp_path / "False")


def test_a_teacher_may_have_another_size(tmp_path: Path, world: Path):
    """Its positions are resampled to the grid, and pictures to its size."""
    source: Source = pictures(world)
    assert train_encoder(config(world, source, image_size=48), tmp_path / "run").step == 4
    assert TokLIP.from_pretrained(tmp_path / "run/model").encoder.pos_embed.shape == (1, 144, 32)


@pytest.mark.slow
def test_a_teacher_with_a_class_token_teaches_as_well(tmp_path: Path, world: Path):
    """It has as many tokens beside it as the encoder, whose class token comes last."""
    small_teacher(3, trunk=CLASS_TOKEN).save_pretrained(tmp_path / "teacher")
    changes = {"losses": {"token_weight": 1.0}, "run": {"steps": 30, "learning_rate": 3e-3}}
    train_encoder(config(world, pictures(world), teacher=str(tmp_path / "teacher"), **changes), tmp_path / "run")
    assert lines(tmp_path / "run")[-1]["loss/tokens"] < lines(tmp_path / "run")[0]["loss/tokens"]
    assert TokLIP.from_pretrained(tmp_path / "run/model").config.encoder.trunk == CLASS_TOKEN


def test_tokenizer_and_text_tower_follow_the_model_to_an_evaluation_before_the_first_batch(
    world: Path, monkeypatch: pytest.MonkeyPatch
):
    """As when a run goes on whose last evaluation is missing; the meta device stands for a GPU."""
    seen: list[set[str]] = []

    def devices(model: TokLIP, held_out: object) -> None:
        seen.append({weight.device.type for weight in model.parameters()})

    monkeypatch.setattr("toklip_core.tasks.encoder.evaluate_matcher", devices)
    settings = config(world, stored(world), held_out={"scenes": 2})
    task = EncoderTask(settings, load_tokenizer("mean-colour"), load_clip(world / "teacher"))
    task.evaluate(task.model.to("meta"))
    assert seen == [{"meta"}] and task.tokenizer.device.type == "meta"
