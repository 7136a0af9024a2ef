"""The laws of embeddings: exact, the same in any batch, reached by no cast, and built again from their configs."""

import subprocess
import sys

import pytest
import torch
from pydantic import ValidationError
from toklip_core.embeddings import BitEmbedding, EmbeddingConfig, PyramidEmbedding, ScalarEmbedding, TableEmbedding
from torch import nn


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def same(got, expected):
    assert torch.equal(got, expected)


def tables():
    return TableEmbedding([numbers(7, 3)])


def concatenated():
    return TableEmbedding([numbers(7, 3), numbers(300, 1), numbers(2, 4)])


def summed():
    return TableEmbedding([numbers(7, 3, seed=1), numbers(5, 3, seed=2), numbers(9, 3, seed=3)], combine="sum")


def shared():
    return TableEmbedding([numbers(7, 3)] * 4, combine="sum", shared=True)


def many_bits():
    return BitEmbedding(28, scale=28**-0.5, order="big")


def grouped_bits():
    return BitEmbedding((6, 12))


def scalars():
    return ScalarEmbedding((8, 5, 5, 4))


def grouped_scalars():
    return ScalarEmbedding(((3, 4), (2,), (7, 5, 3)))


def pyramid():
    return PyramidEmbedding(numbers(11, 5), scales=(1, 2, 3, 5))


ALL = [tables, concatenated, summed, shared, many_bits, grouped_bits, scalars, grouped_scalars, pyramid]
each = pytest.mark.parametrize("make", ALL, ids=lambda make: make.__name__)


def ids_for(embedding, *shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(k, shape, generator=generator) for k in embedding.codebook_sizes], dim=-1)


def picture_ids(embedding, batch):
    return ids_for(embedding, batch, *((1, 39) if isinstance(embedding, PyramidEmbedding) else (4, 6)))


@each
def test_codes_are_float32_of_the_declared_width(make):
    embedding = make()
    codes = embedding(ids_for(embedding, 2, 3))
    assert codes.shape == (2, 3, embedding.codebook_dim) and codes.dtype == torch.float32 and not codes.requires_grad
    assert embedding(ids_for(embedding)).shape == (embedding.codebook_dim,)
    assert list(embedding.parameters()) == []


@each
def test_codes_and_maps_are_the_same_alone_and_in_a_batch(make):
    embedding = make()
    ids = picture_ids(embedding, 5)
    codes, maps = embedding(ids), embedding.code_map(ids)
    for index in range(5):
        same(embedding.code_map(ids[index : index + 1]), maps[index : index + 1])
    for row in range(ids.shape[1]):
        for column in range(ids.shape[2]):
            same(embedding(ids[3, row, column]), codes[3, row, column])


@each
def test_the_code_map_has_the_declared_grid(make):
    embedding = make()
    ids = picture_ids(embedding, 2)
    assert embedding.code_map(ids).shape[1:3] == embedding.map_grid(ids.shape[1:3])
    assert embedding.code_map(ids[:0]).shape == (0, *embedding.code_map(ids).shape[1:])
    if embedding.is_local:
        same(embedding.code_map(ids), embedding(ids))


@each
def test_casts_do_not_touch_it(make):
    embedding = make()
    ids = picture_ids(embedding, 2)
    codes, maps = embedding(ids), embedding.code_map(ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same(embedding(ids), codes)
        same(embedding.code_map(ids), maps)
    holder = nn.Sequential(embedding, nn.Linear(2, 2)).to(torch.bfloat16).half()
    assert holder[1].weight.dtype == torch.float16
    same(embedding(ids), codes)
    same(embedding.code_map(ids), maps)


@each
def test_it_is_built_again_from_its_config_and_its_tables(make):
    embedding = make()
    ids = picture_ids(embedding, 2)
    config = EmbeddingConfig.model_validate_json(embedding.config.model_dump_json())
    assert config == embedding.config
    for device in ("cpu", "meta"):
        with torch.device(device):
            again = config.build()
        assert type(again) is type(embedding) and again.config == config
        assert again.codebook_sizes == embedding.codebook_sizes and again.codebook_dim == embedding.codebook_dim
        assert again.is_local == embedding.is_local and again.levels_are_residual == embedding.levels_are_residual
        again.load_state_dict(embedding.state_dict(), strict=True, assign=device == "meta")
        same(again.code_map(ids), embedding.code_map(ids))


@each
def test_wrong_ids_are_refused(make):
    embedding = make()
    levels = len(embedding.codebook_sizes)
    ids = ids_for(embedding, 2, 3)
    embedding.refuse_ids(ids)
    embedding.refuse_ids(ids[:0])
    for call in (embedding, embedding.refuse_ids):
        with pytest.raises(ValueError, match=rf"got ids of shape \(2, 3, {levels + 1}\); wanted \(\.\.\., {levels}\)"):
            call(torch.zeros(2, 3, levels + 1, dtype=torch.int64))
        with pytest.raises(ValueError, match=r"got ids of torch\.float32; wanted torch\.int64"):
            call(ids.float())
    for wrong in (-1, embedding.codebook_sizes[-1]):
        ids[1, 2, -1] = wrong
        with pytest.raises(ValueError, match=rf"but the codebook.* has {embedding.codebook_sizes[-1]}; take the token"):
            embedding.refuse_ids(ids)


def test_a_table_is_looked_up():
    embedding = concatenated()
    ids = ids_for(embedding, 4)
    looked_up = [numbers(7, 3)[ids[:, 0]], numbers(300, 1)[ids[:, 1]], numbers(2, 4)[ids[:, 2]]]
    same(embedding(ids), torch.cat(looked_up, dim=-1))
    assert not embedding.levels_are_residual


def test_residual_levels_are_summed():
    embedding = summed()
    ids = ids_for(embedding, 4)
    same(embedding(ids), sum(embedding.rows(level)[ids[:, level]] for level in range(3)))
    assert embedding.levels_are_residual


def test_a_shared_table_is_kept_once():
    table = numbers(7, 3)
    embedding = TableEmbedding([table] * 4, combine="sum", shared=True)
    assert list(embedding.state_dict()) == ["table_0"] and embedding.codebook_sizes == (7,) * 4
    assert all(embedding.rows(level).data_ptr() == table.data_ptr() for level in range(4))


def test_bits_have_the_stated_order():
    """The formulas of Open-MAGVIT2 (little) and QLIP (big)."""
    signs = numbers(50, 18) > 0
    little, big = BitEmbedding(18), BitEmbedding(18, order="big")
    same(little.ids_of(signs)[:, 0], (signs * 2 ** torch.arange(18)).sum(-1))
    same(big.ids_of(signs)[:, 0], (signs * 2 ** (17 - torch.arange(18))).sum(-1))
    for embedding in (little, big):
        same(embedding(embedding.ids_of(signs)) > 0, signs)
        same(embedding(embedding.ids_of(signs)).abs(), torch.ones(50, 18))


@pytest.mark.parametrize("embedding", [BitEmbedding(28), many_bits(), BitEmbedding(62), BitEmbedding((20, 28))])
def test_ids_of_many_bits_are_exact(embedding):
    """Float32 holds 24 bits: official code that computes ids in it rounds them."""
    ids = torch.stack([torch.tensor([0, 1, size - 2, size - 1]) for size in embedding.codebook_sizes], dim=-1)
    same(embedding.ids_of(embedding(ids) > 0), ids)
    ids = ids_for(embedding, 500)
    same(embedding.ids_of(embedding(ids) > 0), ids)


def test_scalars_are_evenly_spaced_digits():
    embedding = ScalarEmbedding((8, 5))
    ids = torch.arange(40)[:, None]
    codes = embedding(ids)
    same(torch.unique(codes[:, 0]), torch.tensor([-7, -5, -3, -1, 1, 3, 5, 7]) / 7)
    assert torch.unique(codes[:, 1]).tolist() == [-1, -0.5, 0, 0.5, 1]
    same(codes, -codes.flip(0))
    digits = torch.stack([torch.arange(40) % 8, torch.arange(40) // 8], dim=-1)
    same(embedding.ids_of(digits), ids)


def test_groups_of_scalars_are_levels_of_their_own():
    embedding = grouped_scalars()
    assert embedding.codebook_sizes == (12, 2, 105) and embedding.codebook_dim == 6
    ids = ids_for(embedding, 100)
    groups = enumerate(embedding.values_per_channel)
    alone = [ScalarEmbedding(counts)(ids[:, level, None]) for level, counts in groups]
    same(embedding(ids), torch.cat(alone, dim=-1))
    counts = torch.tensor([3, 4, 2, 7, 5, 3])
    same(embedding.ids_of(((embedding(ids) + 1) / 2 * (counts - 1)).round()), ids)


def test_a_pyramid_sums_its_resized_maps():
    embedding = pyramid()
    ids = picture_ids(embedding, 2)
    total, start = torch.zeros(2, 5, 5, 5), 0
    for scale in (1, 2, 3, 5):
        codes = embedding.rows()[ids[:, 0, start : start + scale**2, 0]].unflatten(1, (scale, scale))
        total += nn.functional.interpolate(codes.movedim(-1, 1), size=(5, 5), mode="bicubic").movedim(1, -1)
        start += scale**2
    torch.testing.assert_close(embedding.code_map(ids), total)
    assert embedding.map_grid((1, 39)) == (5, 5) and not embedding.is_local
    for grid in ((1, 38), (39, 1)):
        wanted = rf"got ids on a grid of {grid[0]} x {grid[1]}; wanted a line, 1 x 39; keep the shape that encode gives"
        with pytest.raises(ValueError, match=wanted):
            embedding.code_map(torch.zeros(2, *grid, 1, dtype=torch.int64))


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda: TableEmbedding([]), r"got tables of shapes \[\]; wanted one \(K, C\) per level"),
        (lambda: TableEmbedding([numbers(3)]), r"got tables of shapes \[\(3,\)\]; wanted one \(K, C\)"),
        (lambda: TableEmbedding([numbers(3, 2), numbers(3, 1)], combine="sum"), r"of one width if they are summed"),
        (lambda: TableEmbedding([numbers(3, 2), numbers(4, 2)], shared=True), r"of one shape if they are shared"),
        (lambda: BitEmbedding(0), r"got bits = 0; wanted 1 to 62 for each level"),
        (lambda: BitEmbedding((6, 63)), r"got bits = \(6, 63\); wanted 1 to 62"),
        (lambda: BitEmbedding(()), r"got bits = \(\); wanted 1 to 62"),
        (lambda: ScalarEmbedding((8, 1)), r"got values_per_channel = \(8, 1\); wanted two values or more per channel"),
        (lambda: ScalarEmbedding(()), r"got values_per_channel = \(\); wanted two values or more per channel"),
        (lambda: ScalarEmbedding(((2**31,) * 3,)), r"and a product of at most 2\^62"),
        (lambda: ScalarEmbedding(((3, 5), 7)), r"wanted .* for one level or in a tuple for each level"),
        (lambda: ScalarEmbedding(([3, 5], [7])), r"wanted .* for one level or in a tuple for each level"),
        (lambda: TableEmbedding([numbers(3, 2)], combine="mean"), r"got combine = 'mean'; wanted 'concat' or 'sum'"),
        (lambda: BitEmbedding(3, order="Little"), r"got order = 'Little'; wanted 'little' or 'big'"),
        (lambda: PyramidEmbedding(numbers(3), (1,)), r"got a table of shape \(3,\) and scales \(1,\); wanted \(K, C\)"),
        (lambda: PyramidEmbedding(numbers(3, 2), ()), r"wanted \(K, C\) and a side"),
    ],
)
def test_sizes_that_mean_nothing_are_refused(make, wanted):
    with pytest.raises(ValueError, match=wanted):
        make()


@pytest.mark.parametrize(
    "config",
    [
        {"kind": "tables"},
        {"kind": "bits", "bits": [28], "tables": [[3, 2]]},
        {"kind": "bits", "bits": []},
        {"kind": "table", "tables": [[3, 2**21]]},
        {"kind": "table", "tables": [[3, 2], [4, 2]], "shared": True},
        {"kind": "scalar", "values_per_channel": [[1]]},
        {"kind": "pyramid", "table": [3, 2], "scales": [0]},
        {"bits": [28]},
    ],
)
def test_a_config_of_something_else_is_refused(config):
    with pytest.raises(ValidationError):
        EmbeddingConfig.model_validate(config)


@pytest.mark.slow
def test_ids_of_28_bits_are_embedded_in_little_memory():
    """A table of 2^28 rows would take 30 GB; 16 x 16 positions must take less than 50 MiB."""
    code = (
        "import resource, torch\n"
        "from toklip_core.embeddings import EmbeddingConfig\n"
        "ids = torch.randint(2**28, (1, 16, 16, 1))\n"
        "torch.zeros(8).float() * 2\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "embedding = EmbeddingConfig(kind='bits', bits=[28]).build()\n"
        "assert embedding.code_map(ids).shape == (1, 16, 16, 28)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    kilobytes = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert int(kilobytes.stdout) < 50 * 1024
