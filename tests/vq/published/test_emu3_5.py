"""Emu3.5's tokenizer: the numbers of the official code, its file, and the config beside it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from toklip_core import load_tokenizer
from toklip_core.testing import check_the_description_fits, tokenizer_checks
from toklip_vq.published import load_emu3_5, taming_name

from tests.support.deterministic import GOLDENS, arrays, constants, small_weights

SMALL = json.loads((GOLDENS / "emu3_5_vision.json").read_text())


def config(**changes: object) -> dict[str, object]:
    """The config.json of the small golden, in the published layout."""
    sizes = SMALL["config"]
    ours = {"codebook_size": sizes["n_embed"], "embed_dim": sizes["embed_dim"], "model_type": "Emu3p5VisionVQ"}
    return {**sizes["ddconfig"], **ours, **changes}


def folder(path, weights=None, **changes):
    (path / "config.json").write_text(json.dumps(config(**changes)))
    torch.save({"state_dict": weights or small_weights("emu3_5_vision")}, path / "model.ckpt")
    return path / "model.ckpt"


def test_it_gives_the_numbers_of_the_official_code_at_the_sizes_of_its_config(tmp_path):
    golden = arrays("emu3_5_vision")
    tokenizer = load_tokenizer("emu3-5-vision", folder(tmp_path))
    with torch.no_grad():
        latents = tokenizer.module.autoencoder.latents(golden["pixels"])
    ids = tokenizer.encode(golden["pixels"])
    torch.testing.assert_close(latents, golden["latents"], rtol=0, atol=5e-5)
    assert torch.equal(ids[..., 0], golden["ids"])
    assert torch.equal(tokenizer.embed(ids).movedim(-1, 1), golden["quantized"])
    torch.testing.assert_close(tokenizer.decode(ids), golden["reconstruction"], rtol=0, atol=5e-5)


def test_the_config_is_fetched_with_the_weights(tmp_path, monkeypatch):
    folder(tmp_path)
    save_file(small_weights("emu3_5_vision"), tmp_path / "model.safetensors")
    asked = []

    def hub_file(repository, filename, **_):
        asked.append((repository, filename))
        return tmp_path / filename

    monkeypatch.setattr("toklip_core.weights.hub_file", hub_file)
    assert load_tokenizer("emu3-5-vision").codebook_sizes == (8192,)
    assert asked == [("BAAI/Emu3.5-VisionTokenizer", name) for name in ("model.safetensors", "config.json")]


@pytest.mark.slow
def test_contract(tmp_path):
    tokenizer = load_emu3_5(folder(tmp_path))
    for check in tokenizer_checks():
        check(tokenizer)


@pytest.mark.slow
def test_every_name_of_the_published_file_finds_its_place(tmp_path):
    tensors = constants("emu3_5_vision")
    torch.save(tensors, tmp_path / "model.ckpt")
    tokenizer = load_tokenizer("emu3-5-vision", tmp_path / "model.ckpt")
    check_the_description_fits(tokenizer)
    loaded = tokenizer.module
    table = loaded.embedding.rows()
    ours = {taming_name(name): tensor for name, tensor in loaded.autoencoder.state_dict().items()}
    ours["quantize.embedding.weight"] = table
    assert ours.keys() == tensors.keys()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in ours.items())


def test_a_missing_and_a_foreign_tensor_are_named(tmp_path):
    tensors = small_weights("emu3_5_vision") | {"quantize.usage": torch.zeros(8192)}
    del tensors["quant_conv.bias"]
    with pytest.raises(ValueError, match=r"missing: quant_conv.bias; not expected: quantize.usage$"):
        load_emu3_5(folder(tmp_path, tensors))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attn_resolutions": [32, 16]}, r"attention at \(32, 16\) is at other levels than the lowest, 16"),
        ({"in_channels": 4}, "config.json: in_channels"),
        ({"double_z": True}, "config.json: double_z"),
        ({"ch": 40}, "cannot be split into 32 groups"),
        ({"n_embed": 1, "codebook_size": 4096}, r"quantize.embedding.weight is \(8192, 24\), not \(4096, 24\)"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_in_one_line(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as raised:
        load_emu3_5(folder(tmp_path, **changes))
    assert "\n" not in str(raised.value)


def test_sides_must_be_multiples_of_the_factor(tmp_path):
    tokenizer = load_emu3_5(folder(tmp_path))
    assert tokenizer.grid(512, 1024) == (32, 64)
    with pytest.raises(ValueError, match="got a picture of 512 x 1000; its sides must be multiples of 16"):
        tokenizer.grid(512, 1000)
