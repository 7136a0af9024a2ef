"""A token store of several ids per position has a column for each level, and large codebooks take what they need."""

import datasets
import duckdb
import pandas as pd
import polars
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from toklip_core.embeddings import MOST_BITS
from toklip_core.pictures import VIEWS
from toklip_core.store import PartWriter, StoreInfo, TokenStore
from toklip_core.tokenizer import TokenizerRecord

#: The codebook sizes of each level, and the types that hold their ids.
LAYOUTS = {
    "one level": ((300,), ("uint16",)),
    "four levels": ((256, 257, 65536, 65537), ("uint8", "uint16", "uint16", "uint32")),
    "28 bits": ((2**28,), ("uint32",)),
    "40 bits": ((2**40,), ("uint64",)),
    "62 bits": ((2**MOST_BITS,), ("uint64",)),
}
GRID = (3, 5)


def info_of(sizes, **changes):
    """The metadata of pictures whose grid is not square."""
    values = {"tokenizer": TokenizerRecord(name="levels", checksum="0" * 64), "codebook_sizes": sizes, "grid": GRID}
    return StoreInfo(**values | {"image_size": 30, "resize": "squash", "dtype": "float32"} | changes)


def ids_of(sizes, *shape):
    """Random ids (..., Q), among them the smallest and the largest of each level."""
    draw = torch.Generator().manual_seed(0)
    levels = [torch.randint(0, size - 1, shape, generator=draw) for size in sizes]
    for level, size in zip(levels, sizes, strict=True):
        level.view(-1)[:2] = torch.tensor([0, size - 1])
    return torch.stack(levels, dim=-1)


def write(folder, sizes, **changes):
    """A store of seven pictures with crops, and what it should hold."""
    ids, crops = ids_of(sizes, 7, *GRID), ids_of(sizes, 7, VIEWS, *GRID)
    writer = PartWriter(folder, info_of(sizes, augment="ten-crop", **changes))
    writer.add([f"{number}.jpg" for number in range(7)], ids, [None] * 7, crops=crops)
    waiting = writer.nbytes
    writer.flush()
    return ids, crops, waiting


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ids_come_back_as_they_were_in_the_smallest_types(tmp_path, layout):
    sizes, types = LAYOUTS[layout]
    ids, crops, waiting = write(tmp_path, sizes)
    names = ["ids"] if len(sizes) == 1 else [f"ids_{level}" for level in range(len(sizes))]
    schema = pq.read_schema(next(tmp_path.glob("part-*")))
    views = [name.replace("ids", "crops") for name in names]
    assert schema.names == ["key", *names, "height", "width", "caption", *views]
    for columns in (names, views):
        assert tuple(str(schema.field(name).type.value_type) for name in columns) == types
    assert waiting == 7 * (1 + VIEWS) * 15 * sum(int(kind.removeprefix("uint")) // 8 for kind in types)
    store = TokenStore(tmp_path)
    for number, row in enumerate(store):
        for same in (row, store[number]):
            assert same.ids.dtype == same.crops.dtype == torch.int64
            assert torch.equal(same.ids, ids[number]) and torch.equal(same.crops, crops[number])


@pytest.mark.parametrize("layout", ["four levels", "28 bits"])
def test_pandas_polars_duckdb_and_datasets_read_every_level(tmp_path, layout):
    sizes, _ = LAYOUTS[layout]
    ids, _, _ = write(tmp_path / "store", sizes)
    names = ["ids"] if len(sizes) == 1 else [f"ids_{level}" for level in range(len(sizes))]
    expected = [ids[3, ..., level].flatten().tolist() for level in range(len(sizes))]
    frame = pd.read_parquet(tmp_path / "store")
    assert [frame[name][3].tolist() for name in names] == expected
    found = duckdb.sql(f"select {', '.join(names)} from '{tmp_path}/store/*.parquet' where key = '3.jpg'").fetchall()
    assert found == [tuple(expected)]
    assert [polars.read_parquet(tmp_path / "store")[name][3].to_list() for name in names] == expected
    cache = str(tmp_path / "cache")
    loaded = datasets.load_dataset("parquet", data_dir=str(tmp_path / "store"), split="train", cache_dir=cache)
    assert [loaded[3][name] for name in names] == expected


def test_a_level_beyond_its_codebook_is_named_with_row_and_column(tmp_path):
    """The types of levels 1 and 3 hold larger ids than there are."""
    sizes, _ = LAYOUTS["four levels"]
    for level, size in ((1, 257), (3, 65537)):
        ids, crops = ids_of(sizes, 2, *GRID), ids_of(sizes, 2, VIEWS, *GRID)
        ids[1, 0, 0, level] = size
        writer = PartWriter(tmp_path / str(level), info_of(sizes, augment="ten-crop"))
        writer.add(["a", "b"], ids, [None, None], crops=crops)
        writer.flush()
        line = rf"row 1 \('b'\): {size} is in 'ids_{level}', but ids are from 0 to {size - 1}"
        with pytest.raises(ValueError, match=line):
            TokenStore(tmp_path / str(level))[0]


def test_a_level_that_is_missing_is_damage(tmp_path):
    write(tmp_path, LAYOUTS["four levels"][0])
    part = next(tmp_path.glob("part-*"))
    table = pq.read_table(part, partitioning=None)
    pq.write_table(table.drop_columns(["ids_2"]), part)
    with pytest.raises(ValueError, match=r"is damaged: the column 'ids_2' is there 0 times, not list<.*: uint16>"):
        TokenStore(tmp_path)


def test_parts_of_other_levels_are_no_store(tmp_path):
    write(tmp_path, (300, 300))
    writer = PartWriter(tmp_path, info_of((300, 301), augment="ten-crop"), rank=1)
    writer.add(["x"], ids_of((300, 301), 1, *GRID), [None], crops=ids_of((300, 301), 1, VIEWS, *GRID))
    writer.flush()
    with pytest.raises(ValueError, match=r"it has codebook_sizes \(300, 301\) \(the store: \(300, 300\)\)"):
        TokenStore(tmp_path)


def test_ids_of_more_than_62_bits_have_no_store():
    with pytest.raises(ValidationError, match=f"less than or equal to {2**MOST_BITS}"):
        info_of((2**MOST_BITS + 1,))


def test_random_ids_of_28_bits_take_less_than_32_on_disk(tmp_path):
    """A dictionary of ids that hardly come twice would add half as much again."""
    writer = PartWriter(tmp_path, info_of((2**28,), grid=(16, 16)))
    ids = torch.randint(0, 2**28, (2000, 16, 16, 1), generator=torch.Generator().manual_seed(0))
    writer.add([f"{number}.jpg" for number in range(2000)], ids, [None] * 2000)
    writer.flush()
    assert next(tmp_path.glob("part-*")).stat().st_size < 4 * ids.numel()
