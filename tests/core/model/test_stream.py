"""Laws of a stream of features: a few positions at a time give what the whole picture gives."""

import math

import pytest
import torch
from toklip_core.model import FeatureStream, join_features

from tests.support.refusals import refusing
from tests.support.small_models import small_toklip, toklip_config


@pytest.mark.parametrize("neighbours", [0, 1])
@pytest.mark.parametrize("features", ["codes", "tokens", "concat"])
def test_positions_by_and_by_have_the_features_of_the_whole_picture(features, neighbours):
    config = toklip_config().encoder
    toklip = small_toklip(encoder=config.model_copy(update={"neighbours": neighbours}))
    embedding, encoder = toklip.tokenizer.embedding, toklip.encoder
    ids = torch.randint(embedding.codebook_sizes[0], (2, math.prod(encoder.config.grid), 1))
    codes = embedding(ids)
    whole = codes
    if features != "codes":
        whole = join_features(features, codes, encoder(codes.unflatten(1, encoder.config.grid)).tokens)
    read, stream = FeatureStream.begin(ids[:, :2], features, embedding=embedding, encoder=encoder)
    stream.step(ids[:, 5:20])  # a draft, which is cut off
    stream.cut(2)
    parts = [read, stream.step(ids[:, 2:3]), stream.step(ids[:, 3:])]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("features", ["tokens", "concat"])
def test_tokens_without_an_encoder_are_refused(features):
    embedding = small_toklip().tokenizer.embedding
    with refusing(f"got the features '{features}' and no encoder"):
        FeatureStream.begin(torch.zeros(1, 2, 1, dtype=torch.int64), features, embedding=embedding, encoder=None)
