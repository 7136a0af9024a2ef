"""TokLIP's official files: the numbers of the official code, through its layout and through a converted folder."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from toklip_core.model import EncoderConfig, TextConfig, TokLIP, TokLIPConfig, TrunkConfig, model_spec
from toklip_core.tokenizer import TokenizerRecord

from tests.support.deterministic import GOLDENS, arrays, constants, deterministic

TRUNK = TrunkConfig(width=96, depth=4, heads=4, mlp_ratio=3.7362)
SMALL = TokLIPConfig(
    tokenizer=TokenizerRecord(name="llamagen-vq16-t2i"),
    image_size=64,
    resize="crop",
    encoder=EncoderConfig(codebook_dim=8, grid=(4, 4), trunk=TRUNK),
    text=TextConfig(
        context_length=16, vocabulary=512, width=96, heads=4, layers=3, mlp_ratio=3.7362, output_dim=96, eos_id=1
    ),
)


def write_official(path, state):
    """A file of the published layout: a training run, numpy scalars beside the tensors."""
    content = {
        "epoch": np.float64(32),
        "step": 7,
        "name": "small",
        "state_dict": {f"module.{name}": tensor for name, tensor in state.items()},
        "optimizer": {"state": {0: {"step": torch.tensor(7.0), "exp_avg": torch.zeros(3)}}, "param_groups": []},
        "scaler": {"scale": np.float32(65536)},
    }
    torch.save(content, path)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The small model of the goldens, through the published layout."""
    path = tmp_path_factory.mktemp("official") / "small.pt"
    names = json.loads((GOLDENS / "toklip_small64.json").read_text())["keys"]
    write_official(path, {name: deterministic(name, tuple(shape)) for name, shape in names.items()})
    yield path
    path.unlink()


@torch.no_grad()
def check_goldens(model):
    golden = arrays("toklip_small64")
    seen = model(golden["pixels"])
    text = model.text(golden["text_ids"])
    assert torch.equal(seen.ids[..., 0].flatten(1), golden["indices"])
    close = {
        "quantized": seen.codes.movedim(-1, 1),
        "tokens": seen.tokens,
        "pooled": seen.pooled,
        "text_pooled": text,
        "image_features": model.image_features(golden["pixels"]),
        "text_features": torch.nn.functional.normalize(text, dim=-1),
        "logit_scale": model.logit_scale.exp(),
        "logit_bias": model.logit_bias,
    }
    for name, mine in close.items():
        torch.testing.assert_close(mine, golden[name], rtol=0, atol=2e-4, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.slow
def test_an_official_file_gives_the_numbers_of_the_official_code(small):
    check_goldens(TokLIP.from_pretrained(small, config=SMALL))


@pytest.mark.slow
def test_a_converted_file_gives_the_numbers_of_the_official_code(small, tmp_path):
    TokLIP.from_pretrained(small, config=SMALL).save_pretrained(tmp_path / "small")
    assert {file.name for file in (tmp_path / "small").iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.safetensors",
    }
    check_goldens(TokLIP.from_pretrained(tmp_path / "small"))


@pytest.mark.slow
def test_a_file_of_the_published_shapes_is_recognised_by_them(tmp_path):
    write_official(tmp_path / "TokLIP_S_256.pt", constants("toklip_s_256"))
    model = TokLIP.from_pretrained(tmp_path / "TokLIP_S_256.pt", text=False)
    assert model.config == model_spec("toklip-b-256").config
    weight = model.encoder.blocks[26].mlp.fc2.weight
    assert weight[0, 0] == constants("toklip_s_256")["visual.trunk.blocks.26.mlp.fc2.weight"][0, 0]
