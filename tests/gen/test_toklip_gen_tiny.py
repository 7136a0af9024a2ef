"""The generator in the package: its size, its name, and whether it draws its prompts."""

import json

import pytest
from click.testing import CliRunner
from PIL import Image
from toklip_core.cli import cli
from toklip_core.drawing.window import WIDTHS
from toklip_core.scenes import Scenes
from toklip_gen.evaluation import SamplingSettings, evaluate_on_scenes
from toklip_gen.generate import generate
from toklip_gen.generator import ModelSettings
from toklip_gen.published import TINY

pytest.importorskip("toklip_vq")


def test_it_is_under_twenty_megabytes():
    assert sum(file.stat().st_size for file in TINY.iterdir()) < 20e6


def test_models_lists_it():
    done = CliRunner().invoke(cli, ["models", "--json"])
    (found,) = [row for row in json.loads(done.stdout) if row["name"] == "toklip-gen-tiny"]
    assert found["image_size"] == 64 and found["tokens"] == 64 and found["package"] == "toklip-gen"


@pytest.mark.slow
def test_it_draws_what_it_is_asked_for():
    sampling = SamplingSettings(batch_size=64)
    report = evaluate_on_scenes(ModelSettings("toklip-gen-tiny"), Scenes(64, split="validation"), sampling=sampling)
    drawn = report.match["pixels"]["drawn"]
    assert drawn.colour is not None and drawn.count is not None and drawn.caption is not None
    # By chance one colour in eight, and one number in three.
    assert drawn.colour > 0.8 and drawn.count > 0.8 and drawn.caption > 0.4


@pytest.mark.slow
def test_generate_needs_nothing_but_the_packages(tmp_path):
    out = tmp_path / "grid.png"
    done = CliRunner().invoke(cli, ["generate", "a large red circle", "-n", "4", "--out", str(out), "--device", "cpu"])
    assert done.exit_code == 0, done.output
    with Image.open(out) as grid:
        assert grid.size == (2 * 64 + 2, 2 * 64 + 2)


@pytest.mark.slow
def test_words_without_quotes_are_drawn_one_by_one_and_it_is_said(tmp_path):
    words = ["--out", str(tmp_path / "grid.png"), "--device", "cpu"]
    done = CliRunner().invoke(cli, ["generate", "red", "circle", *words])
    note = "read 2 texts of one word each; if they are one text, put it in quotes: toklip generate 'red circle'"
    assert done.exit_code == 0 and done.stderr.splitlines().count(note) == 1
    assert "in quotes" not in CliRunner().invoke(cli, ["generate", "a red circle", "a star", *words]).stderr


@pytest.mark.slow
def test_generate_reports_the_calls_of_a_window_and_draws_the_same_picture(tmp_path):
    reports, pictures = [], []
    for name, how in {"one": [], "wide": ["--window", "16"], "auto": ["--window", "auto"]}.items():
        words = ["generate", "a red circle", "--out", str(tmp_path / f"{name}.png"), "--device", "cpu", "--json", *how]
        reports.append(json.loads(CliRunner().invoke(cli, words).stdout))
        with Image.open(tmp_path / f"{name}.png") as picture:
            pictures.append(picture.tobytes())
    assert pictures[0] == pictures[1] == pictures[2]
    one, wide, auto = reports
    assert one["calls"] == 64 and one["positions_per_call"] == 1
    assert wide["calls"] < 48 and wide["positions_per_call"] == 64 / wide["calls"]
    assert auto["calls"] <= 64
    assert (one["window"], wide["window"]) == (1, 16) and auto["window"] in WIDTHS
    refused = CliRunner().invoke(cli, ["generate", "a red circle", "--window", "0"])
    assert refused.exit_code == 2 and "0 is not in the range" in refused.output
    assert "wanted auto, or a number of positions" in " ".join(refused.output.replace("│", "").split())


@pytest.mark.slow
def test_words_that_it_does_not_know_are_named(tmp_path, caplog):
    generate(["a purple unicorn", "a circle"], tmp_path / "out.png")
    assert "reads every unknown word alike: unicorn" in caplog.text


def test_a_class_is_refused_and_no_word(tmp_path, caplog):
    with pytest.raises(ValueError, match="got 3, but the generator draws texts, not classes"):
        generate([3], tmp_path / "out.png")
    assert not caplog.text
