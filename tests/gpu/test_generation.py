"""Drawing with a compiled step and CUDA graphs: the same ids as without."""

import pytest
import torch
from toklip_core.drawing import Sampler
from toklip_gen.generator import IdPredictor

from tests.support.small_generators import (
    FEATURES,
    TOKENIZERS,
    asked,
    sample,
    small_generator,
    small_inputs,
    some_condition,
)

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("vq", TOKENIZERS)
@pytest.mark.parametrize("features", FEATURES)
def test_compiled_draws_are_those_of_the_plain_step_batch_after_batch(features, vq):
    """Two batches: the second fills the caches of the first, whose place is part of the recorded graph."""
    generator, inputs = small_generator(features, vq=vq).cuda(), small_inputs(features, vq)
    if inputs.encoder is not None:
        inputs.encoder.cuda()
    what = some_condition().to("cuda")
    sampler = Sampler(IdPredictor(generator, inputs))
    for seeds in ((7, 8, 9), (1, 2, 3)):
        settings = {"guidance": 2.0, "top_k": 8}
        compiled = sampler.draw(what, seeds=seeds, drawing=asked(**settings), compiled=True).ids
        assert torch.equal(compiled, sample(generator, inputs, what, seeds=seeds, **settings))
