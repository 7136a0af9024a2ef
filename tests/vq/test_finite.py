"""NaN and infinity in pixels, weights and codebook: refused by every backend, because all share one class."""

import math
from functools import partial

import pytest
import torch
from toklip_vq.nearest import nearest_rows

from tests.support.refusals import refusing
from tests.vq.test_vqgan import pixels, tiny

METRICS = ["cosine", "dot", "euclidean"]
BROKEN = [math.nan, math.inf, -math.inf]


@pytest.mark.slow
@pytest.mark.parametrize("value", BROKEN)
@pytest.mark.parametrize("metric", METRICS)
def test_pixels_that_are_no_numbers_have_no_ids(metric, value):
    given = pixels()
    given[2, 0, 3, 3] = value
    with refusing("a pixel of picture 3 of 3 is not finite"):
        tiny(metric=metric).tokenizer().encode(given)


def test_levels_have_no_ids():
    with refusing("got pixels of torch.uint8; wanted floating point in [-1, 1]"):
        tiny().tokenizer().encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


@pytest.mark.parametrize("value", BROKEN)
@pytest.mark.parametrize("metric", METRICS)
def test_latents_that_are_no_numbers_have_no_ids(metric, value):
    """They had id 0 everywhere, and nothing said so."""
    vqgan = tiny(metric=metric)
    vqgan.quant_conv.bias.data[0] = value
    with refusing("a latent of picture 1 of 3 is not finite"):
        vqgan.tokenizer().encode(pixels())


def test_one_picture_among_others_is_named():
    tokenizer = tiny().tokenizer()
    tokenizer.autoencoder.encoder.register_forward_hook(
        lambda module, given, out: out * math.inf if given[0].mean() > 0.5 else out
    )
    given = pixels()
    given[1] = given[1] / 4 + 0.7
    with refusing("a latent of picture 2 of 3 is not finite"):
        tokenizer.encode(given)


@pytest.mark.slow
@pytest.mark.parametrize("row", [0, 40, 63])
@pytest.mark.parametrize("value", BROKEN)
@pytest.mark.parametrize("metric", METRICS)
def test_a_codebook_with_such_a_row_gives_no_ids(metric, value, row, monkeypatch):
    """Whichever chunk of the search it is in."""
    vqgan = tiny(metric=metric)
    vqgan.codebook.weight.data[row, 3] = value
    tokenizer = vqgan.tokenizer()
    monkeypatch.setattr("toklip_vq.quantizers.nearest_rows", partial(nearest_rows, chunk=16))
    if math.isinf(value) and metric != "cosine":  # it may be the furthest from all
        ids = tokenizer.quantizer.search(torch.randn(50, 8))[0]
        assert ids.max() < 64
        return
    with refusing("a latent of picture 1 of 3 is not finite"):
        tokenizer.encode(pixels())


@pytest.mark.parametrize("value", BROKEN)
def test_decoded_pixels_are_numbers(value):
    vqgan = tiny()
    vqgan.decoder.conv_out.bias.data[1] = value
    with refusing("a decoded pixel of picture 1 of 2 is not finite"):
        vqgan.tokenizer().decode(torch.zeros(2, 3, 4, 1, dtype=torch.int64))


def test_no_pictures_are_no_fault():
    tokenizer = tiny().tokenizer()
    assert tokenizer.encode(torch.empty(0, 3, 16, 16)).shape == (0, 2, 2, 1)
    assert tokenizer.decode(torch.empty(0, 2, 2, 1, dtype=torch.int64)).shape == (0, 3, 16, 16)
