"""Evaluation of a generator of classes: pictures of the reference's size, resized as LlamaGen resizes them."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from toklip_core.cli import cli
from toklip_core.drawing import Drawing, Guidance
from toklip_core.training import derived_seed
from toklip_gen.evaluation import Measures, evaluate_on_classes, generators
from toklip_gen.generator import Generator, ModelSettings, PictureGenerator, load_generator
from torch.nn import functional as F

from tests.core.conftest import picture
from tests.support.mean_colour import mean_colour
from tests.support.small_generators import CLASSES, small_config, small_generator
from tests.support.small_models import small_clip, small_toklip

pytestmark = pytest.mark.usefixtures("toy")


@pytest.fixture
def generator(tmp_path):
    """The folder of a generator of five classes, at 32 px."""
    PictureGenerator(small_generator(), tokenizer=mean_colour()).save(tmp_path / "generator")
    return str(tmp_path / "generator")


@pytest.fixture
def teacher(tmp_path):
    small_clip().save_pretrained(tmp_path / "teacher")
    return str(tmp_path / "teacher")


def run(*words):
    return CliRunner().invoke(cli, ["evaluate", "generation", *map(str, words), "--device", "cpu"])


def test_drawn_pictures_are_resized_as_llamagen_resizes_them_and_the_protocol_says_so(tmp_path, generator, teacher):
    """sample_c2i_ddp.py: F.interpolate, bicubic, not antialiased; then 127.5 x + 128, cut to a byte."""
    npz = tmp_path / "drawn.npz"
    report = evaluate_on_classes(ModelSettings(generator), 1, Measures(teacher), size=20, npz=npz)
    assert report.protocol["resized"] == "from 32 x 32 to 20 x 20, bicubic without antialiasing, as LlamaGen does"
    loaded = load_generator(generator)
    seeds = [derived_seed(0, n) for n in range(CLASSES)]
    ids = loaded.draw(list(range(CLASSES)), seeds=seeds, drawing=Drawing(guidance=Guidance(4.0))).ids
    official = F.interpolate(loaded.tokenizer.decode(ids), size=(20, 20), mode="bicubic")
    levels = torch.clamp(127.5 * official + 128.0, 0, 255).permute(0, 2, 3, 1).to(torch.uint8).numpy()
    assert np.abs(np.load(npz)["arr_0"].astype(int) - levels).max() <= 1  # a tie is rounded
    assert "resized" not in evaluate_on_classes(ModelSettings(generator), 1, Measures(teacher)).protocol


def test_another_size_than_the_references_is_refused_before_anything_is_drawn(
    tmp_path, generator, teacher, monkeypatch
):
    for number in range(4):
        picture(number).resize((20, 20)).save(tmp_path / f"{number}.png")
    run(*tmp_path.glob("*.png"), "--write-reference", tmp_path / "r.npz", "--extractor", teacher)
    arguments = ["--generator", generator, "--per-class", 1, "--reference", tmp_path / "r.npz", "--extractor", teacher]
    assert json.loads(run(*arguments, "--size", 20, "--json").stdout)["frechet"] > 0
    monkeypatch.setattr(generators, "_pixels", None)
    refused = run(*arguments, "--npz", tmp_path / "s.npz")
    assert refused.exit_code == 1 and "got pictures of 32 x 32, and the reference is of 20 x 20" in refused.stderr
    assert "--size 20" in refused.stderr and not list(tmp_path.glob("*s.npz*"))


@pytest.mark.slow
def test_a_toklip_that_moved_and_a_precision_can_be_named(tmp_path):
    toklip = small_toklip()
    toklip.save_pretrained(tmp_path / "moved")
    config = small_config("concat", "text", toklip=str(tmp_path / "toklip"))
    pictures = PictureGenerator(Generator(config), tokenizer=toklip.tokenizer, toklip=toklip)
    pictures.save(tmp_path / "texts")
    arguments = ["--generator", tmp_path / "texts", "scenes:held-out?count=2"]
    refused = run(*arguments)
    assert refused.exit_code == 1 and "--toklip PATH" in refused.stderr
    for query, message in {
        "count=1": "got count = 1; wanted 2 scenes or more",
        "background=striped": "captions are drawn on plain backgrounds: leave it out",
        "size=128": "got size=128; pictures are drawn at the generator's own size: leave it out",
        "places=1": "got places=1; the captions that are drawn do not say where",
    }.items():
        refused = run(*arguments[:2], f"scenes:train?{query}")
        assert refused.exit_code == 1 and message in refused.stderr
    report = json.loads(run(*arguments, "--toklip", tmp_path / "moved", "--dtype", "bfloat16", "--json").stdout)
    assert report["protocol"]["generator"] == f"{tmp_path / 'texts'}, in bfloat16" and report["pictures"] == 2
