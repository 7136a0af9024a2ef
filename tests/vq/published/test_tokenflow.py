"""TokenFlow: the numbers of the official code, its files, and the laws of tokenizers."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from toklip_core import load_tokenizer
from toklip_core.testing import check_the_description_fits, tokenizer_checks
from toklip_vq.published import TOKENFLOW_CONFIGS, load_tokenflow, tokenflow_name

from tests.support.deterministic import GOLDENS, arrays, constant
from tests.support.small_published import TOKENFLOW, tokenflow, tokenflow_weights


@pytest.fixture(scope="module", params=TOKENFLOW)
def golden(request):
    return request.param


@pytest.fixture(scope="module")
def tokenizer(golden, tmp_path_factory):
    return tokenflow(tmp_path_factory.mktemp(golden), golden)


def test_it_gives_the_numbers_of_the_official_code(golden, tokenizer):
    numbers, network = arrays(golden), tokenizer.module.autoencoder
    with torch.no_grad():
        latents = network.latents(numbers["pixels"])
        features = network.features(tokenizer.code_map(tokenizer.encode(numbers["pixels"])))
    torch.testing.assert_close(latents, numbers["latents"], rtol=0, atol=5e-5)
    ids = tokenizer.encode(numbers["pixels"])
    assert torch.equal(ids[:, 0, :, 0], numbers["ids"])
    torch.testing.assert_close(tokenizer.code_map(ids).movedim(-1, 1), numbers["quantized"], rtol=0, atol=5e-5)
    torch.testing.assert_close(features, numbers["semantic"], rtol=0, atol=5e-5)
    torch.testing.assert_close(tokenizer.decode(ids), numbers["reconstruction"], rtol=0, atol=5e-5)


@pytest.mark.parametrize("check", tokenizer_checks(), ids=lambda check: check.__name__)
def test_contract(tokenizer, check):
    check(tokenizer)


def test_both_halves_of_a_code_have_unit_norm(tokenizer):
    semantic, look = tokenizer.embedding.rows().split([16, 8], dim=1)
    for half in (semantic, look):
        torch.testing.assert_close(half.norm(dim=-1), torch.ones(2048))


def test_in_half_precision_every_scale_is_searched_in_float32(golden, tmp_path):
    tokenizer, pixels = tokenflow(tmp_path, golden).to(torch.bfloat16), arrays(golden)["pixels"]
    embedding = tokenizer.embedding
    ids = tokenizer.encode(pixels)[:, 0, :, 0].split([scale**2 for scale in embedding.scales], dim=1)
    with torch.no_grad():
        left = torch.cat([tokenizer.module.autoencoder.latents(picture[None]) for picture in pixels]).double()
    rows, side = embedding.rows().double(), embedding.scales[-1]
    for scale, found in zip(embedding.scales, ids, strict=True):
        means = F.adaptive_avg_pool2d(left, scale).flatten(2).mT
        units = torch.cat([F.normalize(part, dim=-1) for part in means.split([16, 8], dim=-1)], dim=-1)
        assert torch.equal(torch.cdist(units, rows).argmin(-1), found)
        maps = rows[found].mT.unflatten(2, (scale, scale))
        left = left - F.interpolate(maps, size=(side, side), mode="bicubic")


@pytest.mark.parametrize("layout", ["ema", "model", "state_dict", None])
def test_a_file_keeps_its_weights_under_one_of_three_names_or_none(layout, tmp_path):
    tensors = tokenflow_weights("tokenflow")
    content = tensors if layout is None else {layout: tensors, "steps": 1}
    if layout == "ema":
        content["model"] = {name: -tensor for name, tensor in tensors.items()}
    torch.save(content, tmp_path / "weights.pt")
    loaded = load_tokenflow(tmp_path / "weights.pt", TOKENFLOW["tokenflow"]).autoencoder
    assert torch.equal(loaded.quant_conv.bias, tensors["quant_conv.bias"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("encoder.conv_in.bias"), r"missing: encoder\.conv_in\.bias"),
        (lambda w: w.pop("quantize.embedding_vqgan.weight"), r"missing: quantize\.embedding_vqgan\.weight"),
        (lambda w: w.update(extra=torch.zeros(1)), "not expected: extra"),
        (
            lambda w: w.update({"decoder_vqkd.pos_embed": torch.zeros(1, 17, 48)}),
            r"decoder_vqkd\.pos_embed is \(1, 17, 48\), not \(1, 10, 48\)",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_the_name_in_it(golden, change, message):
    weights = tokenflow_weights(golden)
    change(weights)
    with pytest.raises(ValueError, match=message):
        load_tokenflow(weights, TOKENFLOW[golden])


def test_ids_are_one_line_of_all_scales(golden, tokenizer):
    scales = TOKENFLOW[golden].scales
    side = TOKENFLOW[golden].image_size
    assert tokenizer.grid(side, side) == (1, sum(scale**2 for scale in scales))
    assert not tokenizer.embedding.is_local
    with pytest.raises(ValueError, match="this tokenizer takes"):
        tokenizer.encode(torch.zeros(1, 3, 64, 80))


def published(name: str) -> dict[str, torch.Tensor]:
    """One value, its own, for each tensor of a published file."""
    shapes = json.loads((GOLDENS / "tokenflow.keys.json").read_text())[name]
    return {key: constant(key, tuple(shape)) for key, shape in shapes.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "file"), [("clipb", "tokenflow_clipb_32k_enhanced"), ("siglip", "tokenflow_siglip_32k")]
)
def test_every_name_of_a_published_file_finds_its_place(variant, file):
    tensors = published(file)
    loaded = load_tokenizer(f"tokenflow-{variant}", tensors)
    for ours, tensor in loaded.module.autoencoder.state_dict().items():
        expected = tensors[tokenflow_name(f"network.{ours}", siglip=variant == "siglip")]
        assert tensor.shape == expected.shape
        assert tensor.flatten()[0] == tensor.flatten()[-1] == expected.flatten()[0], ours
    config = TOKENFLOW_CONFIGS[variant]
    assert loaded.embedding.rows().shape == (config.codebook_size, config.semantic_dim + config.pixel_dim)
    assert loaded.grid(config.image_size, config.image_size) == (1, {"clipb": 817, "siglip": 2227}[variant])
    check_the_description_fits(loaded)
