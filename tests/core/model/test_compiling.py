"""torch.compile changes nothing: the tokens are equal up to rounding, and causal."""

from __future__ import annotations

import shutil

import pytest
import torch
from toklip_core.model import EncoderConfig, SemanticEncoder, TrunkConfig

from tests.support.random_weights import randomised

pytestmark = pytest.mark.slow

#: Compiling costs seconds for every block.
TRUNKS = {
    "attention": TrunkConfig(width=32, depth=1, heads=4),
    "class token": TrunkConfig(width=32, depth=1, heads=4, pooling="class_token", pre_norm=True, output_dim=24),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trunk", "backend"), [("attention", "aot_eager"), ("class token", "aot_eager"), ("attention", "inductor")]
)
@torch.no_grad()
def test_compiling_changes_numbers_by_rounding_only(trunk, backend):
    if backend == "inductor" and shutil.which("c++") is None:
        pytest.skip("inductor needs a C++ compiler")
    model = randomised(SemanticEncoder(EncoderConfig(codebook_dim=6, grid=(3, 5), trunk=TRUNKS[trunk]))).eval()
    codes = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(1))
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    seen, expected = compiled(codes), model(codes)
    torch.testing.assert_close(seen.tokens, expected.tokens)
    torch.testing.assert_close(seen.pooled, expected.pooled)
    other = codes.clone()
    other[:, 2, 1:] = 100
    assert torch.equal(compiled(other).tokens[:, :11], seen.tokens[:, :11])
    torch.compiler.reset()
