"""The published tokenizers, from the hub or its cache: they load strictly, and reconstruct photographs well."""

from pathlib import Path

import pytest
from toklip_core.evaluation import evaluate_tokenizer
from toklip_core.plugins import registry

pytestmark = pytest.mark.weights

PHOTOGRAPHS = Path(__file__).parents[2] / "docs/examples/photographs"
PUBLISHED = sorted(name for name, spec in registry().tokenizers.items() if spec.source)


@pytest.mark.parametrize("name", PUBLISHED)
def test_photographs_are_reconstructed(name):
    """16 dB are below every published mean (LlamaGen: 20.8 dB on ImageNet) and above what wrong weights give."""
    assert evaluate_tokenizer(name, [PHOTOGRAPHS]).psnr > 16
