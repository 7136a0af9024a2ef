"""The model in the package: its size, its name, and its accuracy."""

import json

import pytest
from click.testing import CliRunner
from toklip_core.cli import cli
from toklip_core.config import Compute
from toklip_mllm.evaluation import evaluate_vqa
from toklip_mllm.published import TINY

from tests.core.conftest import picture

pytest.importorskip("toklip_vq")


def test_it_is_under_ten_megabytes():
    assert sum(file.stat().st_size for file in TINY.iterdir()) < 10e6


def test_models_lists_it():
    done = CliRunner().invoke(cli, ["models", "--json"])
    (found,) = [row for row in json.loads(done.stdout) if row["name"] == "toklip-mllm-tiny"]
    assert found["image_size"] == 64 and found["tokens"] == 64 and found["package"] == "toklip-mllm"


@pytest.mark.slow
def test_it_answers_far_more_often_rightly_than_the_most_frequent_answers_do():
    report = evaluate_vqa("toklip-mllm-tiny", "scenes:validation?count=40", compute=Compute(batch_size=64))
    assert report.exact_match is not None
    assert report.exact_match.right > report.exact_match.prior + 0.12
    assert report.by_type["colour"].right > 0.5


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
