"""Laws of the levels of ids: splitting and joining are inverse, sizes fit, no level of bits or channels is large."""

import pytest
import torch
from toklip_core.drawing import IdLevels
from toklip_core.embeddings import BitEmbedding, PyramidEmbedding, ScalarEmbedding, TableEmbedding

SPLITS = [
    IdLevels((11,), (11,)),
    IdLevels((4, 4, 4, 4), (4, 4, 4, 4)),
    IdLevels((2**18,), (2**6, 2**12)),
    IdLevels((2**28, 7), (2**4, 2**12, 2**12, 7)),
    IdLevels((60,), (3, 4, 5)),
    IdLevels((1, 6), (1, 2, 3)),
]


@pytest.mark.parametrize("levels", SPLITS, ids=str)
def test_splitting_and_joining_are_inverse(levels):
    draw = torch.Generator().manual_seed(0)
    ids = torch.stack([torch.randint(size, (50,), generator=draw) for size in levels.codebook_sizes], dim=-1)
    ids = torch.cat([ids, torch.tensor(levels.codebook_sizes)[None] - 1])
    split = levels.split(ids)
    assert split.shape == (51, len(levels.sizes)) and torch.equal(levels.join(split), ids)
    assert (split >= 0).all() and (split[-1] + 1).tolist() == list(levels.sizes)


def test_the_first_level_of_an_id_has_its_lowest_bits():
    """Open-MAGVIT2's factors: channel 0 is the lowest bit, and the first 6 channels are predicted first."""
    channels = torch.arange(18)
    levels = IdLevels((2**18,), (2**6, 2**12)).split((1 << channels)[:, None])
    assert levels[:, 0].tolist() == [1 << channel for channel in range(6)] + [0] * 12
    assert levels[:, 1].tolist() == [0] * 6 + [1 << channel for channel in range(12)]


@pytest.mark.parametrize(
    ("sizes", "levels"), [((11,), (12,)), ((11,), ()), ((4, 4), (4,)), ((4,), (4, 4)), ((8,), (2, 3)), ((4, 8), (8, 4))]
)
def test_levels_that_do_not_make_the_ids_are_refused(sizes, levels):
    with pytest.raises(ValueError, match=r"got levels of \(.*\) for codebooks of \(.*\); wanted one level for each id"):
        IdLevels(sizes, levels)


@pytest.mark.parametrize(
    ("bits", "groups"), [(8, [8]), (14, [14]), (15, [3, 12]), (18, [6, 12]), (24, [12, 12]), (28, [4, 12, 12])]
)
def test_an_id_of_many_bits_is_split_into_groups_of_bits(bits, groups):
    levels = IdLevels.of_embedding(BitEmbedding(bits))
    assert levels == IdLevels((2**bits,), tuple(2**group for group in groups))


@pytest.mark.parametrize(
    ("channels", "sizes"),
    [
        ((8, 5, 5, 5), (1000,)),
        ((8, 8, 8, 5, 5, 5), (12800, 5)),
        ((8,) * 10, (8**4, 8**4, 8**2)),
        ((3, 2**15, 4, 2), (3, 2**15, 8)),
        (((128, 128), (128, 128, 2)), (2**14, 2**14, 2)),
        ((4,) * 31, (4**7, 4**7, 4**7, 4**7, 4**3)),
    ],
)
def test_an_id_of_many_channels_is_split_into_groups_of_channels(channels, sizes):
    """The first group has the channels of the lowest place values, and no group is above 2^14 but a single channel."""
    embedding = ScalarEmbedding(channels)
    levels = IdLevels.of_embedding(embedding)
    assert levels == IdLevels(embedding.codebook_sizes, sizes)
    draw = torch.Generator().manual_seed(0)
    ids = torch.stack([torch.randint(size, (50,), generator=draw) for size in embedding.codebook_sizes], dim=-1)
    ids = torch.cat([ids, torch.tensor(embedding.codebook_sizes)[None] - 1])
    assert torch.equal(levels.join(levels.split(ids)), ids)


def test_other_tokenizers_are_predicted_by_their_own_levels():
    table = torch.zeros(2**15, 2)
    for embedding in (TableEmbedding([table] * 3), ScalarEmbedding(((8, 5), (8, 4))), BitEmbedding((4, 4))):
        assert IdLevels.of_embedding(embedding).sizes == embedding.codebook_sizes


def test_a_pyramid_of_ids_is_refused():
    with pytest.raises(ValueError, match=r"has a pyramid of ids, .* no model can draw it id by id; name a tokenizer"):
        IdLevels.of_embedding(PyramidEmbedding(torch.zeros(5, 2), (1, 2)))
