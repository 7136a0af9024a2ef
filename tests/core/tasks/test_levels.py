"""An encoder over several ids per position, or over bits: trained, resumed, loaded, and used from the command line."""

import json
import signal
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from toklip_core.cli import cli
from toklip_core.model import TokLIP
from toklip_core.store import TokenStore
from toklip_core.tasks import train_encoder
from toklip_core.tokenizer import load_tokenizer

from tests.core.tasks.test_encoder import stopped_after
from tests.support.encoder_runs import assert_same_run, config, encode, pictures, values, write_toml
from tests.support.mean_colour import SEVERAL

pytestmark = pytest.mark.slow


def source_of(world: Path, kind: str, name: str, folder: Path):
    """The pictures of the world, or a store of them with this tokenizer and the teacher's features."""
    if kind == "pictures":
        return pictures(world)
    return encode(world, folder / "ids-and-features", tokenizer=name, teacher=world / "teacher")


@pytest.mark.parametrize("kind", ["pictures", "store"])
@pytest.mark.parametrize("name", [*SEVERAL, "pyramid-greys"])
def test_it_is_trained_resumed_bit_for_bit_and_loaded(tmp_path: Path, world: Path, name: str, kind: str):
    settings = config(world, source_of(world, kind, name, tmp_path), tokenizer=name)
    assert train_encoder(settings, tmp_path / "whole").step == 4
    assert stopped_after(2, settings, tmp_path / "parts").signal == signal.SIGTERM
    assert train_encoder(settings, tmp_path / "parts").step == 4
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    model, tokenizer = TokLIP.from_pretrained(tmp_path / "whole/model"), load_tokenizer(name)
    assert model.config.encoder.codebook_dim == tokenizer.codebook_dim
    encoded = model.encode_pictures(sorted((world / "pictures").glob("*.png")))
    assert encoded.ids.shape == (12, *tokenizer.grid(32, 32), len(tokenizer.codebook_sizes))
    assert encoded.codes.shape[:3] == (12, 8, 8) and encoded.tokens.shape == (12, 64, 32)
    assert torch.equal(encoded.codes, tokenizer.code_map(encoded.ids))
    for whole, one in zip(encoded, model.encode_ids(encoded.ids[3:4]), strict=True):
        torch.testing.assert_close(whole[3:4], one, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SEVERAL)
def test_pixels_and_their_stored_ids_give_the_same_run(tmp_path: Path, world: Path, name: str):
    """The ids are those of the pictures, and without distillation nothing else is read."""
    changes = {"tokenizer": name, "losses": {"pooled_weight": 0.0}, "resize": "crop"}
    for kind in ("pictures", "store"):
        train_encoder(config(world, source_of(world, kind, name, tmp_path), **changes), tmp_path / kind)
    one, other = (TokLIP.from_pretrained(tmp_path / kind / "model").state_dict() for kind in ("pictures", "store"))
    for tensor_name, tensor in one.items():
        torch.testing.assert_close(tensor, other[tensor_name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["quarter-greys", "colour-bits", "pyramid-greys"])
def test_the_commands_train_it_and_use_it(tmp_path: Path, world: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def toklip(*words: object) -> str:
        result = CliRunner().invoke(cli, [str(word) for word in words])
        assert result.exit_code == 0, (result.output, result.exception)
        return result.stdout

    folder, given = world / "pictures", ["--model", "run/model"]
    write_toml(tmp_path / "run.toml", values(world, pictures(world), tokenizer=name, run={"steps": 2}))
    toklip("train", "encoder", "run.toml", "--out", "run")
    toklip("encode", folder, "--out", "store", "--workers", 0, "--tokens", "--augment", "ten-crop", *given)
    row = TokenStore("store")[0]
    levels = len(load_tokenizer(name).codebook_sizes)
    grid = load_tokenizer(name).grid(32, 32)
    assert row.ids.shape == (*grid, levels) and row.crops.shape == (20, *grid, levels)
    assert row.tokens.shape == (64, 32)
    toklip("decode", "store", "--out", "decoded")
    assert len([*Path("decoded").rglob("*.png")]) == 12
    toklip("encode", folder, "--out", "ids", "--workers", 0, "--tokenizer", name)
    found = [
        json.loads(toklip("search", where, "a red circle", "--top", 12, "--json", *given))
        for where in (folder, "store", "ids")
    ]
    names = [[Path(hit["picture"]).name for hit in one["pictures"]] for one in found]
    assert names[0] == names[2] and {*names[0]} == {*names[1]} and len(names[0]) == 12
    labels = ["--labels", "a red circle,a blue square"]
    assert json.loads(toklip("classify", folder / "00.png", *labels, "--json", *given))["pictures"]
    explained = json.loads(toklip("explain", folder / "00.png", "a red circle", "--json", *given))
    assert torch.tensor(explained["texts"][0]["tokens"]).shape == (8, 8)
    report = json.loads(toklip("evaluate", "reconstruction", folder, "--tokenizer", name, "--json"))
    assert len(report["codebook_usage"]) == len(report["perplexity"]) == levels


def test_a_size_that_a_tokenizer_of_one_size_does_not_take_is_refused_before_anything_is_loaded(
    world: Path, tmp_path: Path
):
    line = "got the size 64, but 'colour-bits' takes 32 x 32 alone; leave out the size, or give 32"
    for words in (
        ["encode", world / "pictures", "--out", tmp_path / "s", "--workers", 0, "--teacher", "nowhere"],
        ["evaluate", "reconstruction", world / "pictures"],
    ):
        result = CliRunner().invoke(cli, [*map(str, words), "--tokenizer", "colour-bits", "--size", "64"])
        assert result.exit_code == 1 and result.stderr == f"Error: {line}\n"
        assert not (tmp_path / "s").exists()
    settings = config(world, pictures(world), tokenizer="colour-bits", image_size=64, teacher="nowhere")
    with pytest.raises(ValueError, match=f"^{line}$"):
        train_encoder(settings, tmp_path / "run")
