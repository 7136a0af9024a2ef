"""The model in the package: its size, its name, and its accuracy."""

import json
import re
import shutil

import pytest
import torch
from click.testing import CliRunner
from toklip_core.cli import cli
from toklip_core.config import Compute
from toklip_core.model import load_model
from toklip_core.weights import read_tensors
from toklip_mllm import load_language_model
from toklip_mllm.evaluation import evaluate_vqa
from toklip_mllm.model import TokLIPForConditionalGeneration
from toklip_mllm.published import FOLDERS, TINY_NAME

from tests.core.conftest import picture

pytest.importorskip("toklip_vq")


def test_it_is_under_six_megabytes():
    assert sum(file.stat().st_size for file in FOLDERS[TINY_NAME].iterdir()) < 6e6


def test_its_encoder_is_that_of_toklip_tiny_and_is_saved_with_it(tmp_path):
    model, _ = load_language_model(TINY_NAME)
    assert model.config.encoder_model is None
    theirs = load_model("toklip-tiny").encoder.state_dict()
    assert all(torch.equal(weight, theirs[name]) for name, weight in model.vision.encoder.state_dict().items())
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["encoder_model"] is None
    assert {f"vision.encoder.{name}" for name in theirs} <= read_tensors(tmp_path / "model.safetensors").keys()


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"encoder_checksum": "0" * 64}, "takes its encoder from 'toklip-tiny', and the one that is installed has"),
        ({"encoder_model": "toklip-s-256"}, "encoder_model = 'toklip-s-256'; wanted the name of a TokLIP in a package"),
        ({"encoder_model": "nosuch"}, "nosuch"),
        ({"encoder_model": None}, "weights are missing, such as vision.encoder."),
    ],
)
def test_an_encoder_that_is_another_or_not_there_is_refused(tmp_path, changed, reason):
    shutil.copytree(FOLDERS[TINY_NAME], tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text()) | changed
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=re.escape(reason)) as refused:
        load_language_model(tmp_path / "model")
    assert str(tmp_path / "model") in str(refused.value)


def test_an_encoder_in_the_file_is_the_one_that_is_loaded(tmp_path):
    model, _ = load_language_model(TINY_NAME)
    with torch.no_grad():
        model.vision.encoder.norm.weight.add_(1)
    model.save_pretrained(tmp_path)
    shutil.copy(FOLDERS[TINY_NAME] / "config.json", tmp_path)  # which names toklip-tiny
    loaded = TokLIPForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(loaded.vision.encoder.norm.weight, model.vision.encoder.norm.weight)


def test_an_encoder_that_is_not_in_the_file_is_not_offloaded(tmp_path):
    places = {"vision": "disk", "connector": "cpu", "language_model": "cpu"}
    with pytest.raises(ValueError, match="cannot be offloaded; save it with save_pretrained"):
        TokLIPForConditionalGeneration.from_pretrained(FOLDERS[TINY_NAME], device_map=places, offload_folder=tmp_path)


def test_models_lists_it():
    done = CliRunner().invoke(cli, ["models", "--json"])
    (found,) = [row for row in json.loads(done.stdout) if row["name"] == "toklip-mllm-tiny"]
    assert found["image_size"] == 64 and found["tokens"] == 64 and found["package"] == "toklip-mllm"


@pytest.mark.slow
def test_it_answers_questions_of_every_kind_about_combinations_that_training_never_shows():
    report = evaluate_vqa("toklip-mllm-tiny", "scenes:held-out?count=40", compute=Compute(batch_size=64))
    assert report.exact_match is not None and report.exact_match.right > 0.9
    assert min(share.right for share in report.by_type.values()) > 0.8


def test_a_name_that_no_model_has_is_said_in_one_line(tmp_path):
    picture(0).save(tmp_path / "x.png")
    done = CliRunner().invoke(cli, ["ask", "--model", "nosuch", str(tmp_path / "x.png"), "what is it?"])
    assert done.exit_code == 1 and "there is no model 'nosuch'" in done.stderr


def test_an_empty_question_is_refused():
    done = CliRunner().invoke(cli, ["ask", "picture.png", " "])
    assert done.exit_code == 1 and "the question is empty" in done.stderr


def test_one_question_about_a_picture_needs_nothing_but_the_package(tmp_path):
    CliRunner().invoke(cli, ["scenes", str(tmp_path / "scenes"), "--count", "4", "--seed", "4"], catch_exceptions=False)
    picture = str(tmp_path / "scenes/000003.png")
    done = CliRunner().invoke(cli, ["ask", picture, "what colour is the cross?"], catch_exceptions=False)
    assert done.stdout.strip() == "red"
