"""Held-out data of a run, the recipes, and the command."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from toklip_core.cli import cli
from toklip_core.config import load_config, recipe_names
from toklip_core.model import TokLIP, model_spec
from toklip_core.tasks import (
    ENCODER_RECIPES,
    TEACHER_RECIPES,
    EncoderTrainConfig,
    HeldOutPictures,
    TeacherTrainConfig,
    evaluate_matcher,
    held_out_set,
    train_encoder,
)

from tests.core.conftest import picture
from tests.support.encoder_runs import CAPTIONS, config, lines, pictures, small_teacher, stored, values, write_toml
from tests.support.refusals import last_error
from tests.support.small_models import SIZE

FIGURES = {"zero_shot_top1", "image_to_text_r1", "text_to_image_r1"}


@pytest.mark.slow
def test_the_exported_model_is_the_one_that_was_evaluated(tmp_path: Path, world: Path):
    settings = config(world, pictures(world), held_out={"scenes": 12}, run={"ema_decay": 0.5})
    report = train_encoder(settings, tmp_path / "run")
    model = TokLIP.from_pretrained(tmp_path / "run/model")
    held_out = held_out_set(settings.held_out, image_size=SIZE)
    assert held_out is not None and evaluate_matcher(model, held_out).figures == report.figures
    assert report.figures.keys() == FIGURES
    assert (model.config.resize, model.config.image_size) == (settings.resize, SIZE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of two pictures, and a table of captions."""
    for number, name in enumerate(["red_circle", "blue_square"] * 2):
        path = tmp_path / f"classes/{name}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)
    rows = [{"image": f"classes/red_circle/{n}.png", "captions": CAPTIONS[n : n + 2]} for n in (0, 2)]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_a_run_is_evaluated_on_classes_and_captions_of_ones_own(tmp_path: Path, world: Path, folder: Path):
    held_out = {"classes": str(folder / "classes"), "captions": str(folder / "captions.jsonl")}
    report = train_encoder(config(world, stored(world), held_out=held_out, run={"steps": 1}), tmp_path / "run")
    assert report.figures.keys() == FIGURES
    model = TokLIP.from_pretrained(tmp_path / "run/model")
    for name, expected in (("classes", {"zero_shot_top1"}), ("captions", FIGURES - {"zero_shot_top1"})):
        found = held_out_set(HeldOutPictures.model_validate({name: held_out[name]}), image_size=SIZE)
        assert found is not None
        assert evaluate_matcher(model, found).figures == {key: report.figures[key] for key in expected}


def test_captions_may_be_karpathys_split_for_validation(folder: Path):
    (kept,) = (folder / "classes/red_circle").glob("0.png")
    rows = [
        {"filepath": "classes/red_circle", "filename": kept.name, "split": split, "sentences": [{"raw": split}]}
        for split in ("val", "test")
    ]
    (folder / "dataset_coco.json").write_text(json.dumps({"images": rows}))
    found = held_out_set(HeldOutPictures(captions=folder / "dataset_coco.json"), image_size=SIZE)
    assert found is not None and [list(pair.captions) for pair in found.captioned] == [["val"]]


def test_scenes_are_named_as_their_captions_name_them():
    found = held_out_set(HeldOutPictures(scenes=2), image_size=SIZE)
    assert found is not None and found.labelled is not None
    assert found.templates == ("{}",) and found.labelled.names[0].startswith(("a ", "an "))


def test_scenes_can_be_named_in_place_of_files():
    named = HeldOutPictures.model_validate(
        {"classes": "scenes:held-out?count=4&objects=1", "captions": "scenes:held-out?count=4"}
    )
    found, same = (held_out_set(config, image_size=64) for config in (named, HeldOutPictures(scenes=4)))
    assert found is not None and same is not None and found.labelled is not None and same.labelled is not None
    assert found.templates == same.templates == ("{}",)
    assert found.labelled.names == same.labelled.names and found.labelled.labels == same.labelled.labels
    assert [pair.captions for pair in found.captioned] == [pair.captions for pair in same.captioned]


@pytest.mark.parametrize("kind", ["classes", "captions"])
def test_a_run_is_refused_before_its_first_step_if_held_out_pictures_cannot_be_read(
    tmp_path: Path, world: Path, folder: Path, kind: str
):
    file = folder / "classes/red_circle/2.png"
    file.write_bytes(file.read_bytes()[:60])
    held_out = {"classes": str(folder / "classes"), "captions": str(folder / "captions.jsonl")}
    of = 4 if kind == "classes" else 2
    with pytest.raises(ValueError, match=rf"^1 of {of} held-out pictures cannot be read, the first is .*2\.png: .+;"):
        train_encoder(config(world, stored(world), held_out={kind: held_out[kind]}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_held_out_pictures_that_can_no_longer_be_read_are_reported(folder: Path, caplog: pytest.LogCaptureFixture):
    found = held_out_set(HeldOutPictures(classes=folder / "classes"), image_size=SIZE)
    assert found is not None
    (folder / "classes/red_circle/0.png").write_bytes(b"\x89PNG")
    evaluate_matcher(small_teacher(1), found)
    assert "1 held-out pictures cannot be read and are left out of the figures; the first is" in caplog.text


def test_nothing_held_out_is_no_evaluation(tmp_path: Path, world: Path):
    assert held_out_set(HeldOutPictures(), image_size=SIZE) is None
    report = train_encoder(config(world, stored(world), run={"steps": 1}), tmp_path / "run")
    assert report.figures == {} and len(lines(tmp_path / "run")) == 1


@pytest.mark.parametrize(
    ("recipes", "model", "name"),
    [
        *((ENCODER_RECIPES, EncoderTrainConfig, name) for name in recipe_names(ENCODER_RECIPES)),
        *((TEACHER_RECIPES, TeacherTrainConfig, name) for name in recipe_names(TEACHER_RECIPES)),
    ],
)
def test_every_recipe_loads(recipes: Any, model: Any, name: str):
    assert load_config(name, model, recipes=recipes).run.steps > 0


@pytest.mark.parametrize(("name", "size"), [("toklip-s-256", 256), ("toklip-l-384", 384), ("toklip-xl-512", 512)])
def test_recipes_of_the_published_models_have_the_published_settings(name: str, size: int):
    """Source: TencentARC/TokLIP, src/train_toklip_256.sh and _384.sh, open_clip/loss.py and transform.py."""
    settings, spec = load_config(name, EncoderTrainConfig, recipes=ENCODER_RECIPES), model_spec(name).config
    run, losses = settings.run, settings.losses
    assert (run.learning_rate, run.betas, run.weight_decay) == (1e-5, (0.9, 0.95), 0.1)
    assert (run.schedule, run.warmup_steps, run.seed, run.precision) == ("cosine", 782, 0, "bf16")
    assert (run.accumulate, run.ema_decay, run.max_grad_norm, run.final_learning_rate) == (1, 0, 0, 0)
    assert run.steps * run.batch_size == pytest.approx(32 * 10_968_539, rel=1e-5), "32 epochs of CC12M"
    assert (losses.contrast, losses.contrast_weight) == ("softmax", 1)
    assert (losses.pooled_weight, losses.token_weight) == (1000, 0)
    assert (settings.image_size, settings.smallest_crop_area) == (size, 0.9)
    assert settings.projector_learning_rate_factor == 1
    assert settings.teacher == f"open_clip:ViT-SO400M-16-SigLIP2-{size}/webli"
    assert spec is not None and (settings.tokenizer, settings.resize) == (spec.tokenizer.name, spec.resize)


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(cli, ["train", "encoder", *map(str, arguments)])


def test_the_command_lists_its_recipes():
    listed = invoke("--list")
    assert listed.exit_code == 0
    assert [line.split()[0] for line in listed.stdout.splitlines()] == recipe_names(ENCODER_RECIPES)


def test_what_is_typed_beside_the_list_of_recipes_is_refused():
    result = invoke("scenes-tiny", "--list", "--set", "nonsense=1", "--out", "x", "--json")
    assert result.exit_code == 2
    last_error(result.stderr, "RECIPE, --out, --set, --json have no effect with --list; leave them out")


def test_the_command_trains_and_prints_json(tmp_path: Path, world: Path):
    file = write_toml(tmp_path / "mine.toml", values(world, stored(world)))
    done = invoke(file, "--out", tmp_path / "run", "--set", "run.steps=2", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"out": str(tmp_path / "run"), "step": 2, "figures": {}, "signal": 0}
    again = invoke(file, "--out", tmp_path / "run", "--set", "run.steps=2")
    assert again.stdout == f"{tmp_path / 'run/model'}: step 2\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scenes-tiny"], "name a recipe or a TOML file, and --out FOLDER; --list lists the recipes"),
        (["--out", "x"], "name a recipe or a TOML file, and --out FOLDER; --list lists the recipes"),
        (["scenes-tniy", "--out", "x"], "Did you mean 'scenes-tiny'?"),
        (["scenes-tiny", "--out", "x", "--set", "losses.poled_weight=1"], "did you mean 'pooled_weight'?"),
        (["scenes-tiny", "--out", "x", "--set", "tokenizer=nobody"], "no VQ tokenizer is named 'nobody'"),
        (["scenes-tiny", "--out", "x", "--set", "tokenizer=mean-colour"], "'nobody' is not a model folder"),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong(world: Path, arguments: list[str], message: str):
    done = invoke(*arguments, "--set", "teacher=nobody")
    assert done.exit_code in (1, 2) and message in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("Error")]) == 1
