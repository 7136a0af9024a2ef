"""TokLIP over QLIP from the command line: a store of 28-bit ids, an encoder trained over it, and reconstructions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from toklip_core.cli import cli
from toklip_core.model import CLIP, CLIPConfig, TextTokenizer, TokLIP, VisionConfig
from toklip_core.store import TokenStore
from toklip_vq.published import QLIP, QLIPSizes, TrunkSizes, load_qlip, qlip_name

from tests.core.conftest import picture
from tests.support.encoder_runs import CAPTIONS, values, write_toml
from tests.support.small_models import TRUNK, text_config, words

pytestmark = pytest.mark.slow

NAME = "qlip-b-16-256"


def narrow_file(path: Path) -> Path:
    """A file of the published layout, patches and pictures, 16 wide and one block deep."""
    torch.manual_seed(0)
    trunk = TrunkSizes(width=16, depth=1, heads=2, hidden=24)
    qlip = QLIP(QLIPSizes(patch_size=16, grid=16, bits=28, encoder=trunk, decoder=trunk))
    tensors = {qlip_name(name): tensor.contiguous() for name, tensor in qlip.state_dict().items()}
    tables = {f"vision_{tower}.rope.freqs_cos": torch.zeros(256, 8) for tower in ("model", "decoder")}
    save_file(tensors | tables, path)
    return path


def teacher() -> CLIP:
    """A CLIP for 256 x 256 with as many tokens as QLIP has positions."""
    torch.manual_seed(1)
    vision = VisionConfig(trunk=TRUNK, patch_size=16)
    config = CLIPConfig(image_size=256, resize="crop", vision=vision, text=text_config())
    return CLIP(config, TextTokenizer(config.text, words())).eval()


def toklip(*arguments: object) -> str:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def test_a_store_an_encoder_and_reconstructions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    weights = narrow_file(tmp_path / "model.safetensors")
    teacher().save_pretrained("teacher")
    Path("pictures").mkdir()
    for number in range(4):
        picture(number).save(f"pictures/{number}.png")
        Path(f"pictures/{number}.txt").write_text(CAPTIONS[number])
    named = ["--tokenizer", NAME, "--weights", weights]
    toklip("encode", "pictures", "--out", "store", *named, "--teacher", "teacher", "--workers", 0)
    ids = torch.stack([row.ids for row in TokenStore("store")])
    assert ids.shape == (4, 16, 16, 1) and 2**27 < int(ids.max()) < 2**28
    toklip("decode", "store", "--out", "decoded", "--weights", weights)
    assert len([*Path("decoded").rglob("*.png")]) == 4
    settings = values(
        tmp_path,
        {"kind": "store", "store": "store"},
        tokenizer=NAME,
        tokenizer_weights=str(weights),
        image_size=256,
        run={"steps": 2, "batch_size": 2},
    )
    write_toml(tmp_path / "run.toml", settings)
    toklip("train", "encoder", "run.toml", "--out", "run")
    model = TokLIP.from_pretrained("run/model")
    encoded = model.encode_ids(ids[:2])
    assert torch.equal(encoded.codes, load_qlip(weights).embedding(ids[:2]))
    assert encoded.codes.shape == (2, 16, 16, 28) and encoded.tokens.shape == (2, 256, 32)
    assert torch.equal(model.encode_pictures([Path("pictures/0.png")]).ids, ids[:1])
    hits = json.loads(toklip("search", "store", "a red circle", "--top", 4, "--json", "--model", "run/model"))
    assert len(hits["pictures"]) == 4
    report = json.loads(toklip("evaluate", "reconstruction", "pictures", *named, "--json"))
    assert 0 < report["codebook_usage"][0] <= 4 * 256 / 2**28 and 1 < report["perplexity"][0] <= 4 * 256


def test_another_size_is_refused_before_the_weights_are_looked_for(tmp_path: Path):
    arguments = ["encode", "scenes:train?count=1", "--tokenizer", "qlip-b-16-256", "--size", "128"]
    result = CliRunner().invoke(cli, [*arguments, "--out", str(tmp_path / "store")])
    assert result.exit_code == 1
    line = "got the size 128, but 'qlip-b-16-256' takes 256 x 256 alone; leave out the size, or give 256"
    assert result.stderr == f"Error: {line}\n"
