"""Attention in bfloat16 on a processor: in stripes of queries, and the same function as timm's."""

import copy

import pytest
import torch
from toklip_core.model import EncoderConfig, SemanticEncoder, TrunkConfig

#: 150 codes: a whole stripe, and a part of one.
GRID = (10, 15)


def encoder(pooling="attention"):
    """Weights large enough for attention to choose."""
    torch.manual_seed(0)
    trunk = TrunkConfig(width=64, depth=2, heads=4, pooling=pooling)
    model = SemanticEncoder(EncoderConfig(codebook_dim=8, grid=GRID, trunk=trunk)).eval()
    for block in model.blocks:
        torch.nn.init.normal_(block.attn.qkv.weight, std=0.3)
    return model


def codes(batch=2):
    return torch.randn(batch, *GRID, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("pooling", ["attention", "class_token"])
def test_stripes_are_as_near_to_float32_as_timms_blocks_in_bfloat16(pooling):
    model = encoder(pooling)
    half = copy.deepcopy(model).to(torch.bfloat16)
    exact, by_timm = model(codes()).tokens, half(codes()).tokens
    with torch.no_grad():
        in_stripes = half(codes()).tokens
    assert not torch.equal(in_stripes, by_timm)
    assert (in_stripes.float() - exact).norm() < 1.1 * (by_timm.float() - exact).norm()


@torch.no_grad()
def test_a_token_is_bit_equal_whatever_comes_after_it_in_its_stripe_or_in_the_next():
    model = encoder().to(torch.bfloat16)
    seen = model(codes()).tokens
    for last in (0, 63, 126, 127, 128, 148):
        other = codes().flatten(1, 2)
        other[:, last + 1 :] = 100 * torch.randn(other[:, last + 1 :].shape, generator=torch.Generator().manual_seed(2))
        changed = model(other.unflatten(1, GRID)).tokens
        assert torch.equal(changed[:, : last + 1], seen[:, : last + 1])
        assert not torch.equal(changed[:, last + 1], seen[:, last + 1])


@torch.no_grad()
def test_a_batch_of_one_in_bfloat16_is_a_row_of_a_batch_within_rounding():
    model = encoder().to(torch.bfloat16)
    torch.testing.assert_close(model(codes(3)[1:2]).tokens[0], model(codes(3)).tokens[1], rtol=0.05, atol=0.05)
