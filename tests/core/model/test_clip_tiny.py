"""The shipped CLIP: it is named like other models and teachers, and what it knows of held-out scenes."""

import json

import pytest
from click.testing import CliRunner
from toklip_core.cli import cli
from toklip_core.cli.options import matcher_names, toklip_names
from toklip_core.evaluation import evaluate_retrieval, evaluate_zero_shot
from toklip_core.model import CLIP, CLIP_TINY, TokLIP, load_clip, load_model


def test_it_is_whole_and_small():
    assert sum(file.stat().st_size for file in CLIP_TINY.iterdir()) < 9e6
    assert {file.name for file in CLIP_TINY.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}


def test_its_name_is_that_of_a_teacher_and_of_a_model():
    one, other = load_clip("clip-tiny"), load_model("clip-tiny")
    assert isinstance(other, CLIP) and one.config == other.config == load_clip(CLIP_TINY).config
    with pytest.raises(ValueError, match="holds two towers on pixels, no TokLIP"):
        TokLIP.from_pretrained("clip-tiny")


def test_it_is_listed_with_its_kind_and_completed_where_pictures_meet_texts():
    rows = {row["name"]: row for row in json.loads(CliRunner().invoke(cli, ["models", "--json"]).stdout)}
    found = {key: rows["clip-tiny"][key] for key in ("kind", "image_size", "tokens", "status", "source", "draws")}
    assert found == {
        "kind": "CLIP",
        "image_size": 64,
        "tokens": 64,
        "status": "in the package",
        "source": "",
        "draws": False,
    }
    assert "clip-tiny" in matcher_names() and "clip-tiny" not in toklip_names()


@pytest.mark.slow
def test_it_names_classes_that_it_has_not_seen():
    assert evaluate_zero_shot("clip-tiny", "scenes:held-out?count=256&objects=1").top1 > 0.97


@pytest.mark.slow
def test_it_finds_pictures_by_captions_and_captions_by_pictures():
    report = evaluate_retrieval("clip-tiny", "scenes:held-out?count=256")
    assert report.image_to_text["R@1"] > 0.75 and report.text_to_image["R@1"] > 0.65
