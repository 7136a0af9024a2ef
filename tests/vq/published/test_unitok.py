"""UniTok: the numbers of the official code, through a file of the published layout, and what makes it fast."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from toklip_core import load_tokenizer
from toklip_core.testing import check_the_description_fits, tokenizer_checks
from toklip_core.tokenizer import Tokenizer
from toklip_core.weights import weights_checksum
from toklip_vq.onednn import OneDNNLinear
from toklip_vq.published import UniTokConfig, load_unitok, unitok_name
from toklip_vq.published.unitok import Upsample

from tests.support.published_families import golden, golden_shapes, named_weights, pooled_weights, unitok_file
from tests.support.refusals import refusing

#: The sizes of the goldens.
SMALL = UniTokConfig(
    stem=32,
    stages=(32, 48),
    stage_depths=(2, 2),
    width=128,
    depth=3,
    heads=4,
    up_depths=(2, 2),
    codebook_sizes=(512,) * 8,
    row_width=4,
)


@cache
def small_weights():
    return named_weights(golden_shapes("unitok_small"))


def rows_of(maps):
    """(B, N, D) of (B, D, h, w)."""
    return maps.flatten(2).transpose(1, 2)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The model of the goldens, through the file layout that is published."""
    path = unitok_file(tmp_path_factory.mktemp("weights") / "unitok_tokenizer.pth", golden="unitok_small")
    return load_unitok(path, SMALL)


def test_ids_and_pictures_are_those_of_the_official_code(small):
    """Golden: FoundationVision/UniTok, models/unitok.py, with a width of 128 and 3 blocks, float32 on a CPU."""
    numbers = golden("unitok_small")
    with torch.no_grad():
        features = rows_of(small.autoencoder.encoder(numbers["pixels"]))
        latents = rows_of(small.autoencoder.latents(numbers["pixels"]))
    torch.testing.assert_close(features, numbers["features"], rtol=0, atol=5e-5)
    torch.testing.assert_close(latents, numbers["latents"], rtol=0, atol=5e-5)
    ids = small.encode(numbers["pixels"])
    assert torch.equal(ids.flatten(1, 2).transpose(1, 2), numbers["ids"])
    codes = small.embedding(ids)
    torch.testing.assert_close(codes.flatten(1, 2), numbers["quantized"], rtol=0, atol=5e-5)
    tokens = rows_of(small.autoencoder.tokens(codes))
    torch.testing.assert_close(tokens, numbers["post_quant_tokens"], rtol=0, atol=5e-5)
    torch.testing.assert_close(small.decode(ids), numbers["reconstruction"], rtol=0, atol=5e-5)


def test_a_wide_picture_has_the_ids_of_the_official_code(small):
    numbers = golden("unitok_small")
    with torch.no_grad():
        latents = rows_of(small.autoencoder.latents(numbers["pixels_wide"]))
    torch.testing.assert_close(latents, numbers["latents_wide"], rtol=0, atol=5e-5)
    ids = small.encode(numbers["pixels_wide"])
    assert ids.shape == (1, 3, 5, 8)
    assert torch.equal(ids.flatten(1, 2).transpose(1, 2), numbers["ids_wide"])
    torch.testing.assert_close(small.embedding(ids).flatten(1, 2), numbers["quantized_wide"], rtol=0, atol=5e-5)
    assert small.decode(ids).shape == (1, 3, 48, 80)


@pytest.mark.parametrize("check", tokenizer_checks(), ids=lambda check: check.__name__)
def test_contract(small, check):
    check(Tokenizer("small-unitok", copy.deepcopy(small)))


@pytest.mark.slow
def test_every_name_of_the_published_file_finds_its_place(tmp_path):
    """Tensors that are left out are listed with the reason, and all others arrive."""
    tokenizer = load_tokenizer("unitok", unitok_file(tmp_path / "unitok_tokenizer.pth", pooled_weights))
    check_the_description_fits(tokenizer)
    expected = pooled_weights(golden_shapes("unitok"))
    taken = set()
    for ours, tensor in tokenizer.module.state_dict().items():
        name = unitok_name(ours.removeprefix("autoencoder.").removeprefix("quantizer."))
        if name not in expected:  # an Upsample, which is folded
            name = name.removesuffix("weight").removesuffix("bias") + "conv." + name.rsplit(".", 1)[1]
        if ours.startswith("quantizer."):
            torch.testing.assert_close(tensor, F.normalize(expected[name], dim=-1), rtol=0, atol=1e-6)
        elif tensor.ndim == 4 and tensor.shape[2:] == (4, 4):
            torch.testing.assert_close(tensor.sum((2, 3)), 4 * expected[name].sum((2, 3)).T, rtol=1e-3, atol=1e-3)
        else:
            assert torch.equal(tensor, expected[name]), name
        taken.add(name)
    sides = {name for name in expected if name.startswith(("text_encoder.", "fc_norm.", "projection.", "logit_scale"))}
    unused = {name for name in expected if name.endswith(("vocab_usage", "zero_k_bias"))}
    assert (len(expected), len(taken), len(sides), len(unused)) == (1335, 1171, 154, 10)
    assert taken | sides | unused == expected.keys()


@pytest.mark.parametrize("layout", ["published", "unitok", "flat"])
def test_every_layout_loads(tmp_path, small, layout):
    weights = small_weights()
    content = {"published": {"trainer": {"unitok": weights}}, "unitok": {"unitok": weights}, "flat": weights}[layout]
    torch.save(content, tmp_path / "weights.pth")
    assert weights_checksum(load_unitok(tmp_path / "weights.pth", SMALL)) == weights_checksum(small)


def test_a_missing_a_misshaped_and_a_strange_tensor_are_named_as_in_the_file():
    weights = dict(small_weights())
    del weights["encoder.patch_embed.backbone.stem.conv1.bias"]
    weights["quantizer.codebooks.3.codebook.weight"] = torch.zeros(512, 8)
    weights["encoder.reg_token"] = torch.zeros(1, 1, 128)
    with refusing(
        "missing: encoder.patch_embed.backbone.stem.conv1.bias;",
        "not expected: encoder.reg_token;",
        "quantizer.codebooks.3.codebook.weight is (512, 8), not (512, 4)",
    ):
        load_unitok(weights, SMALL)


def test_a_file_with_code_in_it_is_refused(tmp_path):
    torch.save({"trainer": {"unitok": small_weights()}, "args": Upsample}, tmp_path / "weights.pth")
    with refusing("asks to run toklip_vq.published.unitok.Upsample"):
        load_unitok(tmp_path / "weights.pth", SMALL)


def test_ids_that_a_level_does_not_have_are_refused(small):
    with refusing("got ids from 512 to 512, but the codebook of level 7 has 512"):
        small.decode(torch.tensor([0] * 7 + [512]).view(1, 1, 1, 8))


def test_weights_that_are_mapped_from_the_file_have_no_packed_copy(small):
    small.decode(small.encode(torch.zeros(1, 3, 32, 32)))
    layers = [layer for layer in small.modules() if isinstance(layer, OneDNNLinear)]
    assert layers and not any("_packed" in vars(layer) for layer in layers)


def test_a_folded_upsampling_is_the_same_function():
    torch.manual_seed(0)
    plain, x = Upsample(6, 10), torch.randn(2, 6, 5, 7)
    with torch.no_grad():
        torch.testing.assert_close(plain.folded()(x), plain(x), rtol=0, atol=1e-5)
