"""VILA-U: the numbers of the official code, its files, and the laws of tokenizers."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from toklip_core import load_tokenizer
from toklip_core.testing import check_the_description_fits, tokenizer_checks
from toklip_vq.published import VILA_U_CONFIGS, load_vila_u, load_vila_u_siglip, vila_u_name

from tests.support.deterministic import arrays, constant, constants
from tests.support.small_published import VILA_U, vila_u, vila_u_file, vila_u_resized, vila_u_weights

TABLE = "rqvaesiglip.quantizer.codebooks.{}.weight"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return vila_u(tmp_path_factory.mktemp("vila_u"))


def test_it_gives_the_numbers_of_the_official_code(tokenizer):
    golden = arrays("vila_u")
    with torch.no_grad():
        latents = tokenizer.module.autoencoder.latents(golden["pixels"])
    torch.testing.assert_close(latents.movedim(1, -1), golden["latents"], rtol=0, atol=5e-5)
    ids = tokenizer.encode(golden["pixels"])
    assert torch.equal(ids, golden["ids"])
    for level in range(4):
        rows = tokenizer.embedding.rows(level)[ids[..., level]]
        torch.testing.assert_close(rows, golden["codes_by_depth"][..., level, :], rtol=0, atol=5e-5)
    torch.testing.assert_close(tokenizer.embed(ids), golden["quantized"], rtol=0, atol=5e-5)
    torch.testing.assert_close(tokenizer.decode(ids), golden["reconstruction"], rtol=0, atol=5e-5)


@torch.no_grad()
def test_the_siglip_in_the_file_gives_the_official_features():
    from transformers import SiglipConfig, SiglipTextConfig

    golden, vision = arrays("vila_u"), VILA_U.siglip.vision_config()
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "projection_size": 48}
    text = SiglipTextConfig(vocab_size=300, max_position_embeddings=16, **sizes, **ends)
    siglip = load_vila_u_siglip(vila_u_weights(), SiglipConfig(text_config=text, vision_config=vision))
    pictures, texts = siglip.vision_model(golden["pixels"]), siglip.text_model(golden["text"])
    torch.testing.assert_close(pictures.pooler_output, golden["image_features"], rtol=0, atol=5e-5)
    torch.testing.assert_close(texts.pooler_output, golden["text_features"], rtol=0, atol=5e-5)


@pytest.mark.parametrize("check", tokenizer_checks(), ids=lambda check: check.__name__)
def test_contract(tokenizer, check):
    check(tokenizer)


@pytest.mark.parametrize("check", tokenizer_checks(), ids=lambda check: check.__name__)
def test_contract_where_the_map_is_resized_before_the_decoder(check):
    check(vila_u_resized())


def test_the_table_is_kept_once_and_without_its_padding(tokenizer):
    assert list(tokenizer.embedding.state_dict()) == ["table_0"]
    assert torch.equal(tokenizer.embedding.rows(), vila_u_weights()[TABLE.format(0)][:-1])
    assert tokenizer.codebook_sizes == (2048,) * 4
    assert tokenizer.embedding.levels_are_residual


def test_in_half_precision_the_residuals_are_searched_in_float32(tmp_path):
    tokenizer, pixels = vila_u(tmp_path).to(torch.bfloat16), arrays("vila_u")["pixels"]
    rows = tokenizer.embedding.rows()
    assert rows.dtype == torch.float32
    ids = tokenizer.encode(pixels)
    with torch.no_grad():
        left = torch.cat([tokenizer.module.autoencoder.latents(picture[None]) for picture in pixels]).double()
    left = left.movedim(1, -1)
    for level in range(4):
        nearest = torch.cdist(left, rows.double()).argmin(-1)
        assert torch.equal(ids[..., level], nearest)
        left = left - rows[nearest]


def test_a_half_precision_file_becomes_float32_weights(tmp_path, tokenizer):
    half = {name: tensor.bfloat16().contiguous() for name, tensor in vila_u_weights().items()}
    save_file({name: tensor.clone() for name, tensor in half.items()}, tmp_path / "model.safetensors")
    loaded = load_vila_u(tmp_path, VILA_U)  # the folder, as it is on the hub
    assert torch.equal(loaded.embedding.rows(), half[TABLE.format(0)][:-1].float())
    bias = half["rqvaesiglip.post_quant_conv.bias"]
    assert torch.equal(loaded.autoencoder.post_quant_conv.bias, bias.float())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.pop("rqvaesiglip.siglip_model.vision_model.encoder.layers.0.self_attn.k_proj.bias"),
            r"missing: rqvaesiglip\.siglip_model\.vision_model\.encoder\.layers\.0\.self_attn\.k_proj\.bias",
        ),
        (lambda w: w.update({"rqvaesiglip.extra": torch.zeros(1)}), r"not expected: rqvaesiglip\.extra"),
        (
            lambda w: w.update({"rqvaesiglip.post_quant_conv.bias": torch.zeros(3)}),
            r"rqvaesiglip\.post_quant_conv\.bias is \(3,\), not \(32,\)",
        ),
        (
            lambda w: w.update({TABLE.format(4): w[TABLE.format(0)]}),
            r"not expected: rqvaesiglip\.quantizer\.codebooks\.4\.weight",
        ),
        (
            lambda w: w.update({TABLE.format(2): w[TABLE.format(0)] + 1}),
            r"codebooks\.2\.weight is not the table of level 0, and VILA-U has one for all levels",
        ),
        (lambda w: w.pop(TABLE.format(0)), r"has no rqvaesiglip\.quantizer\.codebooks\.0\.weight; its names are like"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_the_name_in_it(change, message):
    weights = vila_u_weights()
    change(weights)
    with pytest.raises(ValueError, match=message):
        load_vila_u(weights, VILA_U)


def test_a_picture_or_ids_of_another_size_are_refused(tokenizer):
    with pytest.raises(ValueError, match="got a picture of 64 x 80; this tokenizer takes 64 x 64 alone"):
        tokenizer.encode(torch.zeros(1, 3, 64, 80))
    with pytest.raises(ValueError, match="got ids on a grid of 4 x 5; this tokenizer has 4 x 4"):
        tokenizer.decode(torch.zeros(1, 4, 5, 4, dtype=torch.int64))


def test_no_picture_gives_no_ids_and_no_pixels(tokenizer):
    ids = tokenizer.encode(torch.empty(0, 3, 64, 64))
    assert ids.shape == (0, 4, 4, 4)
    assert tokenizer.decode(ids).shape == (0, 3, 64, 64)


def published() -> dict[str, torch.Tensor]:
    """One value for each tensor of the published file; its four tables are equal."""
    tensors = constants("vila_u")
    return {
        name: tensors[TABLE.format(0)] if "codebooks" in name and "weight" in name else t for name, t in tensors.items()
    }


@pytest.mark.slow
def test_every_name_of_the_published_file_finds_its_place():
    tensors = published()
    loaded = load_tokenizer("vila-u-256", tensors)
    for ours, tensor in loaded.module.autoencoder.state_dict().items():
        expected = tensors[f"rqvaesiglip.{vila_u_name(f'network.{ours}', levels=5)}"]
        assert tensor.shape == expected.shape
        assert tensor.flatten()[0] == tensor.flatten()[-1] == expected.flatten()[0], ours
    assert loaded.embedding.rows().shape == (16384, 1024)
    check_the_description_fits(loaded)


@pytest.mark.slow
def test_every_name_of_the_siglip_in_the_published_file_finds_its_place():
    tensors = published()
    loaded = load_vila_u_siglip(tensors).state_dict()
    for name, tensor in loaded.items():
        assert tensor.flatten()[-1] == tensors[f"rqvaesiglip.siglip_model.{name}"].flatten()[0], name
    assert sum(name.startswith("rqvaesiglip.siglip_model.") for name in tensors) == len(loaded)


@pytest.mark.slow
def test_the_384_one_is_what_its_description_says():
    loaded = load_tokenizer("vila-u-384", vila_u_file(VILA_U_CONFIGS[384], constant))
    check_the_description_fits(loaded)
    assert loaded.module.autoencoder.decoder_side * 16 == 384


@pytest.mark.slow
def test_the_256_file_is_no_384_file():
    """The sizes of the 384 one are not verified, so a file that disagrees must be refused with its own sizes."""
    with pytest.raises(ValueError, match=r"weight is \(1024, 3, 16, 16\), not \(1152, 3, 14, 14\)"):
        load_tokenizer("vila-u-384", published())
