"""Emu3's tokenizer: the numbers of the official code and of transformers' class."""

from __future__ import annotations

import sys

import pytest
import torch
from safetensors.torch import save_file
from toklip_vq.published import load_emu3
from toklip_vq.published.emu3 import _official_name

from tests.support.published_families import golden, named_weights


def small_transformers(codebook_size=4096):
    """Emu3VQVAE with towers three levels deep and 32 to 64 wide, random weights."""
    from transformers import Emu3VQVAE, Emu3VQVAEConfig

    config = Emu3VQVAEConfig(
        codebook_size=codebook_size,
        base_channels=32,
        channel_multiplier=[1, 2, 2],
        attn_resolutions=[2],
        hidden_size=64,
    )
    model = Emu3VQVAE(config).eval()
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        weight.data.normal_(1 if "norm" in name and name.endswith("weight") else 0, 0.1)
    return model


def official_shapes(model):
    """Name -> shape as in the published tokenizer, where attention is made of 1 x 1 convolutions."""
    attention = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "out_proj.weight")
    return {
        _official_name(name): (*tensor.shape, 1, 1) if name.endswith(attention) else tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
    }


def test_ids_and_pictures_are_those_of_the_official_code(tmp_path):
    """Golden: baaivision/Emu3, emu3/tokenizer/modeling_emu3visionvq.py, codebook 8192, widths 32, 64, 64."""
    model = small_transformers(codebook_size=8192)
    save_file(named_weights(official_shapes(model)), tmp_path / "model.safetensors")
    ours = load_emu3(tmp_path, model.config)
    numbers = golden("emu3_small")
    torch.testing.assert_close(ours.autoencoder.latents(numbers["pixels"]), numbers["latents"], rtol=0, atol=2e-4)
    assert torch.equal(ours.encode(numbers["pixels"])[..., 0], numbers["indices"])
    pictures = ours.decode(numbers["indices"][..., None])
    torch.testing.assert_close(pictures, numbers["reconstruction"], rtol=0, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "model.vqmodel.", "vqmodel."])
def test_equals_transformers_which_runs_all_four_frames(tmp_path, prefix):
    theirs = small_transformers()
    save_file({prefix + name: tensor for name, tensor in theirs.state_dict().items()}, tmp_path / "model.safetensors")
    ours = load_emu3(tmp_path, theirs.config)
    pixels = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        ids = torch.stack(theirs.encode(pixels, image_sizes=torch.tensor([[16, 24]] * 2)).image_tokens)
        pictures = theirs.decode(ids)
    assert torch.equal(ours.encode(pixels)[..., 0], ids)
    assert len(ids.unique()) > 8
    torch.testing.assert_close(ours.decode(ids[..., None]), pictures, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_missing_tensor_is_named_as_in_the_file(tmp_path):
    model = small_transformers()
    weights = named_weights(official_shapes(model))
    del weights["decoder.up.2.attn.1.norm.conv_y.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing: decoder\.up\.2\.attn\.1\.norm\.conv_y\.weight$"):
        load_emu3(tmp_path, model.config)


def test_without_transformers_a_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(LookupError, match=r"^transformers is not installed: pip install 'toklip-vq\[transformers\]'$"):
        load_emu3(tmp_path)
