"""The shipped model: accuracy of toklip-tiny on scenes outside its training data, by the public commands."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image
from toklip_core import TokLIP
from toklip_core.cli import cli
from toklip_core.evaluation import evaluate_retrieval, evaluate_zero_shot
from toklip_core.model import TINY, models
from toklip_core.scenes import scene

from tests.support.refusals import last_error


@pytest.fixture
def red_circle(tmp_path: Path) -> Path:
    """A large red circle, alone."""
    found = next(
        drawn
        for drawn in (scene(index, split="validation", objects=1) for index in range(2000))
        if drawn.objects[0].colour == "red" and drawn.objects[0].shape == "circle" and drawn.objects[0].radius > 0.2
    )
    Image.fromarray(found.rgb).save(tmp_path / "circle.png")
    return tmp_path / "circle.png"


def test_it_is_whole_and_small():
    assert sum(file.stat().st_size for file in TINY.iterdir()) < 8e6
    assert {file.name for file in TINY.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    assert models()["toklip-tiny"].source == ""


@pytest.mark.slow
def test_it_names_classes_that_it_has_not_seen():
    report = evaluate_zero_shot("toklip-tiny", "scenes:held-out?count=256&objects=1")
    assert report.top1 > 0.93 and report.chance_top1 == 1 / 64


@pytest.mark.slow
def test_it_finds_pictures_by_captions_and_captions_by_pictures():
    report = evaluate_retrieval("toklip-tiny", "scenes:held-out?count=256")
    assert report.image_to_text["R@1"] > 0.8 and report.text_to_image["R@1"] > 0.7


def test_words_that_it_does_not_know_are_named(red_circle: Path, caplog: pytest.LogCaptureFixture):
    CliRunner().invoke(cli, ["classify", str(red_circle), "--labels", "a red zebra,a red circle"])
    assert "reads every unknown word alike: zebra" in caplog.text


@pytest.mark.slow
def test_labels_that_it_cannot_tell_apart_are_refused(red_circle: Path):
    done = CliRunner().invoke(cli, ["classify", str(red_circle), "--labels", "a cat,a dog"])
    assert done.exit_code == 1
    last_error(done.stderr, "reads 'a cat' and 'a dog' alike")


def test_the_picture_is_not_written_over(red_circle: Path):
    before = red_circle.read_bytes()
    done = CliRunner().invoke(cli, ["explain", str(red_circle), "a red circle", "--out", str(red_circle)])
    assert done.exit_code == 1 and "which is one of the inputs and would be written over" in done.output
    assert red_circle.read_bytes() == before


def test_a_red_circle_is_red(red_circle: Path):
    labels = "a red circle,a blue circle,a green circle,a yellow circle"
    done = CliRunner().invoke(cli, ["classify", str(red_circle), "--labels", labels, "--json"])
    assert done.exit_code == 0, done.output
    best = json.loads(done.stdout)["pictures"][0]["labels"][0]
    assert best["label"] == "a red circle" and best["probability"] > 0.5


def test_one_call_gives_ids_codes_tokens_and_a_feature(red_circle: Path):
    encoded = TokLIP.from_pretrained("toklip-tiny").encode_pictures([red_circle])
    assert encoded.ids.shape == (1, 8, 8, 4) and encoded.codes.shape == (1, 8, 8, 8)
    assert encoded.tokens.shape == (1, 64, 160) and encoded.pooled.shape == (1, 160)
