"""Laws of the group norm of the towers, which has its own moments where no gradient is needed."""

from __future__ import annotations

import pytest
import torch
from toklip_vq.towers import group_norm, normalize


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("side", [6, 514], ids=["whole", "in stripes"])
@torch.no_grad()
def test_the_norm_holds_where_the_mean_is_far_above_the_deviation(batch, side, layout):
    """torch's own norm of channels_last is off by more than 1 there."""
    x = 3 + 0.01 * torch.randn(batch, 32, side, side + 2, generator=torch.Generator().manual_seed(0))
    x[:, ::2] += 0.5
    norm = group_norm(8, 32)
    torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias)
    expected = torch.nn.functional.group_norm(x.double(), 8, norm.weight.double(), norm.bias.double(), norm.eps)
    normalized = normalize(x.to(memory_format=layout), norm)
    torch.testing.assert_close(normalized, expected.float(), rtol=0, atol=1e-3)
    assert normalized.is_contiguous(memory_format=layout)


@torch.no_grad()
def test_nothing_is_normalized_without_an_error():
    assert normalize(torch.empty(0, 32, 8, 8), group_norm(8, 32)).shape == (0, 32, 8, 8)
