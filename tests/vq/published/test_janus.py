"""Janus's tokenizer: the numbers of LlamaGen's VQ-16, which it equals, and of transformers' towers."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from toklip_vq.nearest import unit_rows
from toklip_vq.published import load_janus
from toklip_vq.vqgan import VQGANConfig

from tests.support.published_families import golden, janus_file

SMALL = VQGANConfig(codebook_size=64, codebook_dim=8, channels=32, channel_multipliers=(1, 2), z_channels=16)


def small_transformers():
    """JanusVQVAE at SMALL, for pictures of 16 x 16, with random weights."""
    from transformers import JanusVQVAE, JanusVQVAEConfig

    torch.manual_seed(0)
    model = JanusVQVAE(
        JanusVQVAEConfig(
            embed_dim=8,
            num_embeddings=64,
            latent_channels=16,
            base_channels=32,
            channel_multiplier=[1, 2],
            num_patches=8,
        )
    ).eval()
    model.load_state_dict({name: torch.randn_like(tensor) / 8 for name, tensor in model.state_dict().items()})
    return model


def write_small(model, path, prefix="model.vqmodel."):
    weights = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    save_file(weights | {"lm_head.weight": torch.zeros(2, 2)}, path)
    return path


@pytest.mark.slow
def test_ids_and_pictures_are_those_of_the_official_code(tmp_path):
    """Golden: LlamaGen's VQ-16, whose names, shapes and ids deepseek-ai/Janus, janus/models/vq_model.py shares."""
    tokenizer = load_janus(janus_file(tmp_path / "pytorch_model.bin").parent)
    numbers = golden("llamagen_vq16")
    ids = tokenizer.encode(numbers["pixels"])
    assert torch.equal(ids.flatten(), numbers["indices"].flatten())
    torch.testing.assert_close(tokenizer.decode(ids), numbers["reconstruction"], rtol=0, atol=2e-4)


def test_towers_are_those_of_transformers(tmp_path):
    theirs = small_transformers()
    ours = load_janus(write_small(theirs, tmp_path / "model.safetensors"), SMALL)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1
    with torch.no_grad():
        latents = theirs.quant_conv(theirs.encode(pixels).last_hidden_state)
        ids = torch.randint(64, (2, 8, 8), generator=generator)
        pictures = theirs.decode(ids.flatten(1))
    torch.testing.assert_close(ours.autoencoder.latents(pixels), latents, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.decode(ids[..., None]), pictures, rtol=0, atol=1e-5)


def test_the_lengths_of_rows_and_latents_change_no_id(tmp_path):
    """Janus's own search takes directions alone, and transformers' takes lengths in: why its class is not used."""
    model = small_transformers()
    pixels = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    expected = load_janus(write_small(model, tmp_path / "model.safetensors"), SMALL).encode(pixels)
    lengths = torch.linspace(0.1, 10, 64)[torch.randperm(64, generator=torch.Generator().manual_seed(2))]
    with torch.no_grad():
        model.quantize.embedding.weight *= lengths[:, None]
        model.quant_conv.weight *= 3
        model.quant_conv.bias *= 3
        theirs = model.encode(pixels).image_tokens
    assert torch.equal(load_janus(write_small(model, tmp_path / "longer.safetensors"), SMALL).encode(pixels), expected)
    assert not torch.equal(theirs, expected.flatten())


def test_half_precision_in_the_file_gives_float32_weights(tmp_path):
    """Janus-Pro is published in bfloat16."""
    model = small_transformers().to(torch.bfloat16)
    ours = load_janus(write_small(model, tmp_path / "model.safetensors"), SMALL)
    assert {tensor.dtype for tensor in ours.state_dict().values()} == {torch.float32}
    assert torch.equal(ours.embedding.rows(), unit_rows(model.quantize.embedding.weight.float()))


def test_a_model_without_a_tokenizer_is_refused(tmp_path):
    save_file({"lm_head.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"no gen_vision_model\.quantize.*its names are like lm_head\.weight"):
        load_janus(tmp_path)
