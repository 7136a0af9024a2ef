"""Drawing on a GPU: the pictures of a processor, with every window, and with compiled steps and CUDA graphs."""

import json

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from toklip_core import plugins
from toklip_core.cli import cli
from toklip_core.drawing import Sampler
from toklip_gen.generator import Condition, IdPredictor, load_generator

from tests.support.small_generators import (
    FEATURES,
    TOKENIZERS,
    asked,
    sample,
    small_generator,
    small_inputs,
    some_condition,
)

# What the libraries of a GPU warn of cannot be known where there is none: it is shown.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

CAPTIONS = ["a red circle", "a blue square above a green star", "two yellow triangles"]
SEEDS = [7, 8, 9]


def small_pair(features, vq, device, dtype=torch.float32):
    """A small generator and its inputs on a device."""
    generator, inputs = small_generator(features, vq=vq).to(device, dtype), small_inputs(features, vq)
    if inputs.encoder is not None:
        inputs.encoder.to(device, dtype)
    return generator, inputs


@pytest.mark.parametrize("vq", TOKENIZERS)
@pytest.mark.parametrize("features", FEATURES)
def test_compiled_draws_are_those_of_the_plain_step_batch_after_batch(features, vq, device):
    """Two batches: the second fills the caches of the first, whose place is part of the recorded graph."""
    generator, inputs = small_pair(features, vq, device)
    what = some_condition().to(device)
    sampler = Sampler(IdPredictor(generator, inputs))
    for seeds in (SEEDS, (1, 2, 3)):
        settings = {"guidance": 2.0, "top_k": 8}
        compiled = sampler.draw(what, seeds=seeds, drawing=asked(**settings), compiled=True).ids
        assert torch.equal(compiled, sample(generator, inputs, what, seeds=seeds, **settings))


@pytest.mark.parametrize("window", [4, "auto"])
def test_compiled_windows_draw_the_pictures_of_a_cpu_in_float64(window, device):
    settings = {"guidance": {"scale": 2.0, "first": 3, "last": 40}, "top_k": 8}
    kind = ("concat", "mean-colour")
    expected = sample(*small_pair(*kind, "cpu", torch.float64), some_condition(), seeds=SEEDS, **settings)
    sampler = Sampler(IdPredictor(*small_pair(*kind, device, torch.float64)), window=window)
    what, drawing = some_condition().to(device), asked(**settings)
    for _ in range(2):
        assert torch.equal(sampler.draw(what, seeds=SEEDS, drawing=drawing, compiled=True).ids.cpu(), expected)


@pytest.fixture(scope="module")
def on_cpu():
    """Conditions of the captions, and the ids that the shipped generator draws for them in float64."""
    model = load_generator("toklip-gen-tiny", dtype=torch.float64)
    condition = model.conditions(CAPTIONS)
    return condition, Sampler(IdPredictor(model.generator, model.inputs)).draw(condition, seeds=SEEDS).ids


@pytest.mark.parametrize("noise", ["uniform", "gumbel"])
@pytest.mark.parametrize("window", [1, 4, 16, "auto"])
def test_in_float64_the_shipped_generator_draws_the_pictures_of_a_cpu(window, noise, device, on_cpu):
    """With its guidance, together and one of them alone, and below a prefix."""
    condition, expected = on_cpu
    model = load_generator("toklip-gen-tiny", dtype=torch.float64, device=device)
    sampler = Sampler(IdPredictor(model.generator, model.inputs), window=window)

    def draw(places, **options):
        rows = Condition(*(part[places] for part in condition)).to(device)
        drawing = asked(noise=noise)
        return sampler.draw(rows, seeds=[SEEDS[place] for place in places], drawing=drawing, **options).ids.cpu()

    together = draw([0, 1, 2])
    if noise == "uniform":
        assert torch.equal(together, expected)
    assert torch.equal(draw([1]), together[1:2])
    assert torch.equal(draw([1], prefix=together[1:2].flatten(1, 2)[:, :20]), together[1:2])


def test_the_command_draws_in_bfloat16_compiled(tmp_path, device):
    file = tmp_path / "drawn.png"
    words = ["generate", *CAPTIONS, "--out", str(file), "--json", "--device", device, "--dtype", "bfloat16"]
    done = CliRunner().invoke(cli, [*words, "--compile", "--window", "4"], obj=plugins.registry())
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout[done.stdout.index("{") :])
    assert len(report["pictures"]) == 3 and report["calls"] <= 64
    with Image.open(file) as picture:
        assert picture.size == (64, 3 * 64 + 2 * 2)
        assert len(picture.getcolors(2**20)) > 100
