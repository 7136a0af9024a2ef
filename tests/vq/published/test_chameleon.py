"""Chameleon's tokenizer: the numbers of Meta's code, and of the encoder in transformers."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from toklip_vq.published import load_chameleon, taming_name
from toklip_vq.vqgan import VQGAN, VQGANConfig

from tests.support.published_families import chameleon_file, golden

SMALL = VQGANConfig(
    codebook_size=64,
    codebook_dim=16,
    metric="euclidean",
    channels=32,
    channel_multipliers=(1, 2),
    z_channels=16,
    attention=False,
)


def small_weights(prefix=""):
    """Random weights of SMALL under the names of the taming layout."""
    torch.manual_seed(0)
    weights = VQGAN(SMALL).state_dict()
    return {prefix + taming_name(name, levels=2): torch.randn_like(tensor) / 8 for name, tensor in weights.items()}


@pytest.mark.slow
def test_ids_and_pictures_are_those_of_metas_code(tmp_path):
    """Golden: facebookresearch/chameleon, chameleon/inference/vqgan.py, published sizes, float32 on a CPU."""
    tokenizer = load_chameleon(chameleon_file(tmp_path / "vqgan.ckpt"))
    numbers = golden("chameleon")
    latents = tokenizer.autoencoder.latents(numbers["pixels"])
    torch.testing.assert_close(latents, numbers["latents"], rtol=0, atol=2e-4)
    assert torch.equal(tokenizer.encode(numbers["pixels"])[..., 0], numbers["indices"])
    pictures = tokenizer.decode(numbers["indices"][..., None])
    torch.testing.assert_close(pictures, numbers["reconstruction"], rtol=0, atol=2e-4)


def test_encodes_as_transformers_does(tmp_path):
    from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

    weights = small_weights()
    theirs = ChameleonVQVAE(
        ChameleonVQVAEConfig(
            embed_dim=16, num_embeddings=64, latent_channels=16, base_channels=32, channel_multiplier=[1, 2]
        )
    ).eval()
    theirs.load_state_dict({name: tensor for name, tensor in weights.items() if not name.startswith("decoder.")})
    save_file(weights, tmp_path / "model.safetensors")
    ours = load_chameleon(tmp_path, SMALL)
    pixels = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        found = theirs.encode(pixels)
        latents = theirs.quant_conv(found.last_hidden_state)
    torch.testing.assert_close(ours.autoencoder.latents(pixels), latents, rtol=0, atol=1e-6)
    assert torch.equal(ours.encode(pixels).flatten(), found.image_tokens)
    assert len(found.image_tokens.unique()) > 8


def test_a_model_folder_without_the_decoder_is_refused(tmp_path):
    """facebook/chameleon-7b: the conversion to transformers left the decoder out. Its shards need not even be there."""
    names = [name for name in small_weights("model.vqmodel.") if not name.startswith("model.vqmodel.decoder.")]
    shard = "model-00003-of-00003.safetensors"
    weights = small_weights("model.vqmodel.")
    save_file({name: weights[name] for name in names}, tmp_path / shard)
    index = {"weight_map": dict.fromkeys(names, shard) | {"lm_head.weight": "model-00001-of-00003.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"not its decoder.*take tokenizer/vqgan\.ckpt of the original release"):
        load_chameleon(tmp_path, SMALL)


def test_a_model_folder_with_the_decoder_loads(tmp_path):
    """Anole's conversion to transformers has it."""
    weights = small_weights("model.vqmodel.")
    save_file(weights | {"lm_head.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    ids = torch.arange(6).view(1, 2, 3)
    codes = weights["model.vqmodel.quantize.embedding.weight"][ids]
    assert torch.equal(load_chameleon(tmp_path, SMALL).embedding(ids[..., None]), codes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("decoder.up.1.block.0.conv1.bias"), r"missing: decoder\.up\.1\.block\.0\.conv1\.bias"),
        (lambda w: w.update(extra=torch.zeros(1)), "not expected: extra"),
        (lambda w: w.update({"quant_conv.bias": torch.zeros(3)}), r"quant_conv\.bias is \(3,\), not \(16,\)"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_the_name_in_it(tmp_path, change, message):
    weights = small_weights()
    change(weights)
    torch.save({"state_dict": weights}, tmp_path / "vqgan.ckpt")
    with pytest.raises(ValueError, match=message):
        load_chameleon(tmp_path / "vqgan.ckpt", SMALL)
