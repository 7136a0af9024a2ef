"""Laws of attention by products: torch's numbers and gradients, in trainings on a CPU in half precision alone."""

import pytest
import torch
import torch.nn.functional as F
from toklip_core.training import CPUAttention, attention_by_products
from toklip_core.training.cpu_attention import MOST_KEYS


def rows(positions=9, heads=4, of_keys=4):
    torch.manual_seed(0)
    shapes = [(2, heads, positions, 8), (2, of_keys, positions, 8), (2, of_keys, positions, 8)]
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


def gradients(function, given, **settings):
    found = function(*given, **settings)
    return [found, *torch.autograd.grad(found.square().sum(), given)]


@pytest.mark.parametrize(
    ("of_keys", "settings"),
    [
        (4, {}),
        (4, {"is_causal": True}),
        (2, {"is_causal": True, "enable_gqa": True}),
        (4, {"scale": 0.1}),
        (4, {"attn_mask": torch.ones(9, 9, dtype=torch.bool).tril(2)}),
        (4, {"attn_mask": torch.randn(2, 1, 9, 9)}),
    ],
)
def test_it_is_torchs_attention(of_keys, settings):
    given = rows(of_keys=of_keys)
    expected = gradients(F.scaled_dot_product_attention, given, **settings)
    torch.testing.assert_close(gradients(attention_by_products, given, **settings), expected)


def test_a_row_that_may_attend_to_nothing_stays_finite():
    given = rows()
    mask = torch.ones(9, 9, dtype=torch.bool).tril()
    mask[0] = False
    assert all(found.isfinite().all() for found in gradients(attention_by_products, given, attn_mask=mask))


def test_only_short_attention_that_learns_under_autocast_is_by_products(monkeypatch):
    calls = []

    def noted(*args, **settings):
        calls.append(settings)
        return attention_by_products(*args, **settings)

    monkeypatch.setattr("toklip_core.training.cpu_attention.attention_by_products", noted)
    with CPUAttention():
        F.scaled_dot_product_attention(*rows())
        with torch.autocast("cpu", torch.bfloat16):
            F.scaled_dot_product_attention(*rows(positions=MOST_KEYS + 1))
            with torch.no_grad():
                F.scaled_dot_product_attention(*rows())
            assert not calls
            F.scaled_dot_product_attention(*rows(), is_causal=True)
    with torch.autocast("cpu", torch.bfloat16):
        F.scaled_dot_product_attention(*rows())
    assert calls == [{"is_causal": True}]


def test_half_precision_is_as_close_to_float32_as_torchs_is():
    given = rows(positions=64)
    exact = gradients(F.scaled_dot_product_attention, given, is_causal=True)
    with torch.autocast("cpu", torch.bfloat16):
        fused = gradients(F.scaled_dot_product_attention, given, is_causal=True)
        products = gradients(attention_by_products, given, is_causal=True)
    for one, other, true in zip(products, fused, exact, strict=True):
        assert (one.float() - true).norm() < 2 * (other.float() - true).norm() + 1e-3 * true.norm()
