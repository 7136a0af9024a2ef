"""NaN and infinity: refused in every input and output, including values passed from Python."""

import math
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from toklip_core import load_tokenizer
from toklip_core.cli import cli
from toklip_core.evaluation import evaluate_reconstruction
from toklip_core.model import TokLIP, load_clip
from toklip_core.pictures import refuse_pixels, to_picture, to_rgb
from toklip_core.plugins import TokenizerSpec
from toklip_core.weights import NotFiniteError, is_finite, read_tensors, refuse_damaged, refuse_not_finite, rows_named
from torch import nn

from tests.core.conftest import picture
from tests.support.mean_colour import MeanColour
from tests.support.refusals import refused, refusing
from tests.support.small_models import small_clip, small_toklip

BROKEN = [math.nan, math.inf, -math.inf]


def pixels(count=3, size=32):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def with_value(value, row=1):
    found = pixels()
    found[row, 2, 5, 7] = value
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
@pytest.mark.parametrize("value", BROKEN)
def test_one_number_among_many_is_found(dtype, value):
    tensor = torch.ones(7, 5, 3).to(dtype)
    assert is_finite(tensor) and is_finite(tensor.transpose(0, 1)) and is_finite(torch.empty(0, 3, dtype=dtype))
    tensor[6, 4, 2] = value
    assert not is_finite(tensor) and not is_finite(tensor.transpose(0, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_numbers_are_finite_inside_autocast_too(dtype):
    with torch.autocast("cpu", torch.bfloat16):
        assert is_finite(torch.ones(3, dtype=dtype)) and not is_finite(torch.full((3,), torch.inf, dtype=dtype))


def test_integers_are_finite():
    assert is_finite(torch.tensor([1, 2])) and is_finite(torch.tensor([True]))


def test_the_first_row_is_named_by_its_place_or_by_its_name():
    rows = torch.zeros(4, 2)
    rows[2, 1], rows[3, 0] = math.nan, math.inf
    with refusing("the model's feature of text 3 of 4 is not finite"):
        refuse_not_finite(rows, "the model's feature", "text")
    with refusing("the model's feature of 'c.jpg' is not finite", kind=NotFiniteError), rows_named(["a", "b", "c.jpg"]):
        refuse_not_finite(rows, "the model's feature")


def test_a_compiled_graph_is_not_broken_by_looking():
    @torch.compile(fullgraph=True, backend="eager")
    def checked(x):
        refuse_pixels(x)
        refuse_not_finite(x, "a number")
        return x + 1

    assert torch.equal(checked(torch.ones(2, 3, 4, 4)), torch.full((2, 3, 4, 4), 2.0))


@pytest.mark.parametrize("levels", [torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.zeros(1, 3, 32, 32).long()])
def test_levels_are_no_pixels(levels):
    for read in (MeanColour().encode, small_toklip(), small_toklip().image_features, small_clip().image_features):
        with refusing(f"got pixels of {levels.dtype}; wanted floating point in [-1, 1]", "normalized"):
            read(levels)
    with refusing("got pixels of"):
        evaluate_reconstruction(MeanColour(), list(levels))


@pytest.mark.parametrize("value", BROKEN)
def test_pixels_that_a_caller_passes_are_looked_at(value):
    bad = with_value(value)
    for read in (MeanColour().encode, small_toklip(), small_toklip().image_features, small_clip().image_features):
        with refusing("a pixel of picture 2 of 3 is not finite"):
            read(bad)
    with refusing("a pixel of picture 2 of 3 is not finite"):
        evaluate_reconstruction(MeanColour(), list(bad))


@pytest.mark.parametrize("value", BROKEN)
def test_pixels_that_are_written_are_looked_at(value):
    bad = with_value(value)
    with refusing("a pixel of picture 2 of 3 is not finite"):
        to_rgb(bad)
    with refusing("a pixel of picture 1 of 1 is not finite"):
        to_picture(bad[1])


class Blind(MeanColour):
    """A plugin that looks at nothing, whose decoder gives NaN."""

    def encode(self, pixels):
        return torch.zeros(len(pixels), 8, 8, 1, dtype=torch.int64)

    def decode(self, ids):
        return torch.full((len(ids), 3, 32, 32), math.nan)


def test_a_plugin_that_looks_at_nothing_does_not_get_away_with_it():
    with refusing("a pixel of picture 1 of 2 is not finite"):
        evaluate_reconstruction(Blind(), [torch.zeros(3, 32, 32)] * 2)


def test_only_a_buffer_that_is_not_finite_is_copied_to_look_for_masks(monkeypatch):
    masked, fill = [], torch.Tensor.masked_fill
    monkeypatch.setattr(torch.Tensor, "masked_fill", lambda *arguments: masked.append(1) or fill(*arguments))
    module = MeanColour()
    refuse_damaged(module, "weights.bin")
    assert not masked
    module.register_buffer("mask", torch.tensor([0.0, -math.inf]))
    refuse_damaged(module, "weights.bin")
    assert len(masked) == 1


@pytest.mark.parametrize("place", ["embedding.table_0", "scale"])
@pytest.mark.parametrize("value", BROKEN)
def test_weights_of_any_plugin_are_looked_at_when_it_is_loaded(toy, monkeypatch, place, value):
    """Whichever way it reads them."""

    def factory(weights):
        tokenizer = MeanColour()
        tokenizer.scale = nn.Parameter(torch.ones(3), requires_grad=False)
        tensor = tokenizer.get_parameter(place) if place == "scale" else tokenizer.get_buffer(place)
        tensor[1] = value
        return tokenizer

    spec = TokenizerSpec(name="acme", factory=factory, summary="For tests.")
    monkeypatch.setattr("toklip_core.tokenizer.tokenizer_spec", lambda name: spec)
    if place == "embedding.table_0" and value == -math.inf:  # as a mask has it
        load_tokenizer("acme")
        return
    with refusing(f"the tensor {place!r} of 'weights.bin' has NaN or infinity in it"):
        load_tokenizer("acme", "weights.bin")
    with refusing(f"the tensor {place!r} of 'acme' has"):
        load_tokenizer("acme")


def broken(model, name, value=math.nan):
    model.get_parameter(name).data.view(-1)[0] = value
    return model


@pytest.mark.parametrize("name", ["encoder.projector.0.weight", "encoder.norm.bias", "encoder.pos_embed"])
def test_a_toklip_gives_no_features_that_are_no_numbers(tmp_path, name):
    model = broken(small_toklip(), name).eval()
    picture(0).save(tmp_path / "a.png")
    ids = model.tokenizer.encode(pixels())
    calls = {
        "call": lambda: model(pixels()),
        "ids": lambda: model.encode_ids(ids),
        "image_features": lambda: model.image_features(pixels()),
        "pictures": lambda: model.encode_pictures([tmp_path / "a.png"]),
    }
    for call in calls.values():
        with refusing("of picture 1 of ", "is not finite"):
            call()


def test_texts_have_no_features_that_are_no_numbers():
    for model in (small_toklip(), small_clip()):
        broken(model, "text.network.ln_final.weight")
        with refusing("the model's feature of text 1 of 2 is not finite"):
            model.text_features(["a", "b"])
        with refusing("a token of text 1 of 2 is not finite"):
            model.text.tokens(["a", "b"])


def test_a_clip_gives_no_features_that_are_no_numbers():
    clip = small_clip()
    broken(clip, next(name for name, _ in clip.named_parameters() if name.startswith("vision.norm"))).eval()
    with refusing("the model's feature of picture 1 of 3 is not finite"):
        clip.image_features(pixels())


def save_broken(model, folder, value=math.nan):
    """Save a model, and put a value into a tensor of what sees pictures, whose name is returned."""
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    name = sorted(name for name in tensors if name.startswith(("encoder.", "vision.")))[-1]
    tensors[name].view(-1)[0] = value
    save_file(tensors, folder / "model.safetensors")
    return name


@pytest.mark.parametrize("value", BROKEN)
def test_a_model_folder_with_such_a_weight_is_refused_by_its_name(toy, tmp_path, value):
    name = save_broken(small_toklip(), tmp_path / "toklip", value)
    with refusing(f"the tensor {name!r} of '{tmp_path / 'toklip'}' has NaN or infinity in it"):
        TokLIP.from_pretrained(tmp_path / "toklip")
    name = save_broken(small_clip(), tmp_path / "clip", value)
    with refusing(f"the tensor {name!r} of '{tmp_path / 'clip'}' has NaN"):
        load_clip(tmp_path / "clip")


def test_every_command_refuses_such_a_model_in_one_line(toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture(0).save("a.png")
    save_broken(small_toklip(), Path("toklip"))
    for arguments in (
        ["encode", "a.png", "--model", "toklip", "--out", "store", "--workers", "0"],
        ["search", "a.png", "a cat", "--model", "toklip"],
        ["classify", "a.png", "--labels", "a,b", "--model", "toklip"],
        ["explain", "a.png", "a cat", "--model", "toklip", "--out", "b.png"],
    ):
        refused(CliRunner().invoke(cli, arguments), "'toklip' has NaN or infinity")


def test_every_command_refuses_such_a_tokenizer_in_one_line(toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture(0).save("a.png")
    good = {"levels": torch.linspace(-1, 1, 300)[:, None].contiguous()}
    save_file(good, "good.safetensors")
    save_file({"levels": torch.where(good["levels"] > 0.99, math.nan, good["levels"])}, "bad.safetensors")
    encode = ["encode", "a.png", "--tokenizer", "mean-colour", "--out", "store", "--workers", "0", "--weights"]
    assert CliRunner().invoke(cli, [*encode, "good.safetensors"]).exit_code == 0
    assert is_finite(read_tensors("good.safetensors")["levels"])
    for arguments in (
        [*encode, "bad.safetensors"],
        ["decode", "store", "--out", "out", "--weights", "bad.safetensors"],
        ["evaluate", "reconstruction", "a.png", "--tokenizer", "mean-colour", "--weights", "bad.safetensors"],
    ):
        refused(CliRunner().invoke(cli, arguments), "the tensor 'levels' of 'bad.safetensors' has NaN or infinity")
