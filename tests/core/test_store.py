"""A token store is read as it is by other tools, row by row by ours, and never mixes what does not belong together."""

import pickle

import datasets
import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from toklip_core.parts import PartWriter, StoreInfo, Unreadable, UnreadableLog
from toklip_core.store import TokenStore

INFO = StoreInfo(
    tokenizer="mean-colour",
    weights_checksum="0" * 64,
    codebook_size=300,
    downsample_factor=4,
    image_size=32,
    resize="crop",
    dtype="float32",
)


def rows_of(count, seed=0):
    """Keys, ids (count, 3, 5), captions of which every other is absent."""
    ids = torch.randint(0, 300, (count, 3, 5), generator=torch.Generator().manual_seed(seed))
    return [f"{seed}/{n}.jpg" for n in range(count)], ids, [f"picture {n}" if n % 2 else None for n in range(count)]


def write(path, counts=(7, 4), **changes):
    """A store of one part for each count."""
    writer = PartWriter(path, INFO.model_copy(update=changes))
    for seed, count in enumerate(counts):
        writer.add(*rows_of(count, seed))
        writer.flush()
    return path


def test_datasets_pandas_and_duckdb_read_a_store_as_it_is(tmp_path):
    store = write(tmp_path / "store")
    UnreadableLog(store).add(Unreadable("x.jpg", "x.jpg", "broken"))
    (store / ".part-00000-000009.parquet.tmp").write_bytes(b"left by a kill")
    keys, ids, captions = rows_of(7)
    expected = ids[3].flatten().tolist()

    frame = pd.read_parquet(store)
    assert list(frame.columns) == ["key", "ids", "height", "width", "caption"] and len(frame) == 11
    assert frame.key[3] == keys[3] and frame.ids[3].tolist() == expected and frame.ids[3].dtype == np.uint16
    assert frame.caption[3] == captions[3] and frame.caption.isna().sum() == 6

    found = duckdb.sql(
        f"select ids, height, width, caption from '{store}/*.parquet' where key = '{keys[3]}'"
    ).fetchall()
    assert found == [(expected, 3, 5, "picture 3")]

    for arguments in ({"data_dir": str(store)}, {"data_files": f"{store}/*.parquet"}):
        loaded = datasets.load_dataset("parquet", split="train", cache_dir=str(tmp_path / "cache"), **arguments)
        assert len(loaded) == 11 and loaded[3] == dict(
            key=keys[3], ids=expected, height=3, width=5, caption="picture 3"
        )
    assert len(datasets.load_dataset(str(store), split="train", cache_dir=str(tmp_path / "cache"))) == 11


@pytest.mark.parametrize(
    ("codebook_size", "dtype"), [(256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32"), (1, "uint8")]
)
def test_ids_take_the_smallest_type_that_holds_them(tmp_path, codebook_size, dtype):
    writer = PartWriter(tmp_path, INFO.model_copy(update={"codebook_size": codebook_size}))
    writer.add(["a"], torch.tensor([[[0, codebook_size - 1]]]), [None])
    writer.flush()
    part = pq.read_table(next(tmp_path.glob("part-*")))
    assert str(part.schema.field("ids").type.value_type) == dtype
    assert TokenStore(tmp_path)[0].ids.tolist() == [[0, codebook_size - 1]]


def test_rows_come_by_number_and_in_order_with_their_grid(tmp_path):
    store = TokenStore(write(tmp_path))
    keys, ids, captions = (
        first + second for first, second in zip(map(list, rows_of(7)), map(list, rows_of(4, 1)), strict=True)
    )
    assert len(store) == 11 and list(store.keys()) == keys and store.info == INFO
    for number, row in enumerate(store):
        for same in (row, store[number], store[number - 11]):
            assert (same.key, same.caption) == (keys[number], captions[number])
            assert torch.equal(same.ids, ids[number]) and same.ids.dtype == torch.int64
    for outside in (11, -12):
        with pytest.raises(IndexError, match="of a store of 11"):
            store[outside]


def test_a_large_part_is_read_in_groups_and_few_of_them_stay_in_memory(tmp_path):
    store = TokenStore(write(tmp_path, (2500, 1200)), cached_rows=2000)
    for number in (0, 999, 1000, 2499, 2500, 3699, 5):
        assert store[number].key == f"{int(number >= 2500)}/{number - 2500 * (number >= 2500)}.jpg"
    assert len(store._groups) == 5 and len(store._cache) == 2


def test_a_reader_can_be_sent_to_a_worker(tmp_path):
    store = TokenStore(write(tmp_path))
    assert store[3].key == "0/3.jpg"
    sent = pickle.loads(pickle.dumps(store))
    assert len(sent._cache) == 0 and torch.equal(sent[3].ids, store[3].ids)


def test_a_writer_goes_on_numbering_and_clears_what_a_kill_left(tmp_path):
    write(tmp_path, (3,))
    for name in (".part-00000-000002.parquet.tmp", ".part-00001-000001.parquet.tmp"):
        (tmp_path / name).write_bytes(b"half")
    writer = PartWriter(tmp_path, INFO, rank=0, world_size=2)
    assert [path.name for path in tmp_path.glob(".*.tmp")] == [".part-00001-000001.parquet.tmp"]  # of another rank
    writer.add(*rows_of(2, 1))
    writer.flush()
    writer.flush()
    assert sorted(path.name for path in tmp_path.glob("*.parquet")) == [
        "part-00000-000001.parquet",
        "part-00000-000002.parquet",
    ]
    PartWriter(tmp_path, INFO, rank=0, world_size=1)
    assert not list(tmp_path.glob(".*.tmp"))


def test_reports_of_all_ranks_are_one_list_without_what_the_store_holds(tmp_path):
    write(tmp_path, (3,))
    for rank, name in [(0, "a"), (0, "0/1.jpg"), (1, "b"), (1, "a")]:
        (tmp_path / "__unreadable__").mkdir(exist_ok=True)
        with (tmp_path / f"__unreadable__/rank-{rank:05d}.jsonl").open("a") as file:
            file.write(f'{{"key": "{name}", "source": "s", "reason": "r"}}\n')
    with (tmp_path / "__unreadable__/rank-00001.jsonl").open("a") as file:
        file.write('{"key": "cut by a ki')
    assert sorted(row.key for row in TokenStore(tmp_path).unreadable()) == ["a", "b"]
    UnreadableLog(tmp_path, rank=0, world_size=1)  # a new encode by one process tries all of them again
    assert TokenStore(tmp_path).unreadable() == []


def test_parts_of_two_tokenizers_are_no_store_and_the_differences_are_named(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b", weights_checksum="1" * 64, image_size=64)
    next((tmp_path / "b").glob("part-*")).rename(tmp_path / "a/part-00009-000001.parquet")
    with pytest.raises(ValueError, match=r"weights_checksum '1+' \(the store: '0+'\), image_size 64 \(the store: 32\)"):
        TokenStore(tmp_path / "a")


def test_what_is_no_store_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no token store at"):
        TokenStore(tmp_path)
    part = tmp_path / "part-00000-000001.parquet"
    pd.DataFrame({"a": [1]}).to_parquet(part)
    with pytest.raises(ValueError, match="is no part of a token store"):
        TokenStore(tmp_path)
    part.write_bytes(b"PAR1 nonsense")
    with pytest.raises(ValueError, match="is damaged"):
        TokenStore(tmp_path)


def test_a_store_of_a_later_format_is_refused(tmp_path):
    info = INFO.model_copy(update={"format": 2})
    writer = PartWriter(tmp_path, info)
    writer.add(*rows_of(1))
    writer.flush()
    with pytest.raises(ValueError, match="was not written by this version: format"):
        TokenStore(tmp_path)


def test_ids_outside_of_the_codebook_or_the_grid_are_damage(tmp_path):
    writer = PartWriter(tmp_path, INFO)
    writer.add(["a"], torch.tensor([[[0, 300]]]), [None])
    writer.flush()
    with pytest.raises(ValueError, match="'a' has 2 ids up to 300 on a grid of 1 x 2, of a codebook of 300"):
        TokenStore(tmp_path)[0]
