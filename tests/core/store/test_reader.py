"""A token store can be read by other tools and row by row by ours, and never mixes different encodings."""

import json
import pickle

import datasets
import duckdb
import numpy as np
import pandas as pd
import polars
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import torch
from toklip_core.store import (
    FeatureInfo,
    PartWriter,
    RowCache,
    StoreInfo,
    TokenStore,
    UnreadableLog,
    UnreadablePicture,
    read_report,
)
from toklip_core.tokenizer import TokenizerRecord

from tests.support.encoding import encode_with

INFO = StoreInfo(
    tokenizer=TokenizerRecord(name="mean-colour", checksum="0" * 64),
    codebook_sizes=(300,),
    grid=(4, 4),
    image_size=16,
    resize="crop",
    dtype="float32",
)
MODEL = FeatureInfo(model="small", weights_checksum="2" * 64, width=6)
FEATURES = {"pooled": MODEL, "tokens": MODEL.model_copy(update={"width": 4, "count": 16}), "teacher": MODEL}


def rows_of(count, seed=0):
    """Keys, ids (count, 4, 4, 1), captions of which every other is absent."""
    ids = torch.randint(0, 300, (count, 4, 4, 1), generator=torch.Generator().manual_seed(seed))
    return [f"{seed}/{n}.jpg" for n in range(count)], ids, [f"picture {n}" if n % 2 else None for n in range(count)]


def write(path, counts=(7, 4), seeds=(0, 1), **changes):
    """A store of one part for each count."""
    writer = PartWriter(path, INFO.model_copy(update=changes))
    for seed, count in zip(seeds, counts, strict=False):
        writer.add(*rows_of(count, seed))
        writer.flush()
    return path


def test_the_checksum_is_of_rows_in_their_order_and_groups(tmp_path):
    first = TokenStore(write(tmp_path / "first")).checksum
    assert TokenStore(write(tmp_path / "same")).checksum == first
    assert TokenStore(write(tmp_path / "others", seeds=(0, 2))).checksum != first
    assert TokenStore(write(tmp_path / "swapped", counts=(4, 7), seeds=(1, 0))).checksum != first
    assert TokenStore(write(tmp_path / "grouped", counts=(7,))).checksum != first


def rows_by_reader(store, cache):
    """Number of rows that each reader finds in a folder that it is given as a whole."""
    loaded = [{"path": "parquet", "data_dir": str(store)}, {"path": str(store)}]
    return {
        "pandas": len(pd.read_parquet(store)),
        "polars": len(polars.read_parquet(store)),
        "polars, lazily": len(polars.scan_parquet(store).collect()),
        "pyarrow": pyarrow.dataset.dataset(store).count_rows(),
        "duckdb": duckdb.sql(f"select count(*) from '{store}/*.parquet'").fetchall()[0][0],
        "datasets": len(datasets.load_dataset(**loaded[0], split="train", cache_dir=str(cache))),
        "datasets, by its name": len(datasets.load_dataset(**loaded[1], split="train", cache_dir=str(cache))),
    }


def test_datasets_pandas_polars_and_duckdb_read_a_store_as_it_is(tmp_path):
    store = write(tmp_path / "store")
    UnreadableLog(store).add(UnreadablePicture("x.jpg", "x.jpg", "broken"))
    keys, ids, captions = rows_of(7)
    expected = ids[3].flatten().tolist()
    row = dict(key=keys[3], ids=expected, height=4, width=4, caption="picture 3")

    frame = pd.read_parquet(store)
    assert list(frame.columns) == ["key", "ids", "height", "width", "caption"] and len(frame) == 11
    assert frame.key[3] == keys[3] and frame.ids[3].tolist() == expected and frame.ids[3].dtype == np.uint16
    assert frame.caption[3] == captions[3] and frame.caption.isna().sum() == 6

    found = duckdb.sql(
        f"select ids, height, width, caption from '{store}/*.parquet' where key = '{keys[3]}'"
    ).fetchall()
    assert found == [(expected, 4, 4, "picture 3")]
    assert polars.read_parquet(store).row(3, named=True) == row

    for arguments in ({"data_dir": str(store)}, {"data_files": f"{store}/*.parquet"}):
        loaded = datasets.load_dataset("parquet", split="train", cache_dir=str(tmp_path / "cache"), **arguments)
        assert len(loaded) == 11 and loaded[3] == row
    assert set(rows_by_reader(store, tmp_path / "cache").values()) == {11}


def test_a_store_is_read_as_a_folder_while_it_is_written_and_after_a_kill(toy, photos, tmp_path, monkeypatch):
    """Also the moment in which a part is half written, and with a picture that cannot be read."""
    (photos / "broken.jpg").write_bytes(b"no picture")
    store, seen = tmp_path / "store", []
    write_table = pq.write_table

    def looked_at(table, file, **options):
        file.write(b"PAR1 and half of a part")
        file.flush()
        if list(store.glob("*.parquet")):
            seen.append(rows_by_reader(store, tmp_path / f"cache-{len(seen)}"))
        if len(seen) == 3:
            raise KeyboardInterrupt
        file.seek(0)
        file.truncate()
        write_table(table, file, **options)

    monkeypatch.setattr(pq, "write_table", looked_at)
    monkeypatch.setattr("pathlib.Path.unlink", lambda *arguments, **options: None)  # as a kill leaves it
    with pytest.raises(KeyboardInterrupt):
        encode_with([photos], store, tokenizer="mean-colour", batch_size=1, part_rows=1)
    monkeypatch.undo()
    assert [set(found.values()) for found in seen] == [{1}, {2}, {3}]
    assert set(rows_by_reader(store, tmp_path / "after").values()) == {3}
    assert [path.name for path in tmp_path.glob(".store.*.tmp")] == [".store.part-00000-000004.parquet.tmp"]


def test_what_is_no_part_lies_in_the_store_where_nothing_can_be_written_beside_it(tmp_path, monkeypatch):
    """A mount is such a place; what lies inside or beside is found."""
    row = UnreadablePicture("x.jpg", "x.jpg", "broken")
    UnreadableLog(write(tmp_path / "store")).add(row)
    assert (tmp_path / ".store.unreadable/rank-00000.jsonl").exists()
    (tmp_path / "link").symlink_to("store")
    assert TokenStore(tmp_path / "link").unreadable() == [row]
    monkeypatch.chdir(tmp_path / "store")
    assert TokenStore(".").unreadable() == [row]
    monkeypatch.setattr("toklip_core.store.writer.lies_beside", lambda store, rank: False)
    inside = row._replace(key="y.jpg")
    UnreadableLog(tmp_path / "store").add(inside)
    assert (tmp_path / "store/.unreadable/rank-00000.jsonl").exists() and TokenStore(".").unreadable() == [row, inside]
    leftover = tmp_path / "store/.part-00000-000007.parquet.tmp"
    leftover.touch()
    write(tmp_path / "store", (1,), seeds=(5,))
    assert not leftover.exists() and len(TokenStore(".")) == 12


def test_a_store_is_only_read_by_who_reads_it_and_may_be_moved(tmp_path):
    """So it may lie where nothing can be written."""
    store = write(tmp_path / "store")
    before = {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.rglob("*")]}
    assert len(list(TokenStore(store))) == 11 and TokenStore(store).unreadable() == []
    assert {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.rglob("*")]} == before
    store.rename(tmp_path / "moved")
    assert len(list(TokenStore(tmp_path / "moved"))) == 11


def features_of(count, seed=0):
    """Return features of a grid of 4 x 4; float16 holds them exactly."""
    shapes = {"pooled": (count, 6), "tokens": (count, 16, 4), "teacher": (count, 6)}
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draw).half().float() for name, shape in shapes.items()}


def write_features(path, counts=(7, 4)):
    writer = PartWriter(path, INFO.model_copy(update=FEATURES))
    for seed, count in enumerate(counts):
        writer.add(*rows_of(count, seed), features_of(count, seed))
        writer.flush()
    return path


def test_features_come_back_with_their_rows(tmp_path):
    store = TokenStore(write_features(tmp_path))
    expected = [features_of(7), features_of(4, 1)]
    for number, row in enumerate(store):
        for same in (row, store[number]):
            for name, features in expected[number >= 7].items():
                feature = getattr(same, name)
                assert feature.dtype == torch.float32 and torch.equal(feature, features[number - 7 * (number >= 7)])
    only = TokenStore(tmp_path, features=("teacher",))[8]
    assert only.pooled is None and only.tokens is None and torch.equal(only.teacher, expected[1]["teacher"][1])


def test_other_tools_read_features_as_lists_of_float16(tmp_path):
    store = write_features(tmp_path / "store")
    teacher, tokens = features_of(7)["teacher"][3], features_of(7)["tokens"][3].flatten()
    frame = pd.read_parquet(store)
    assert frame.teacher[3].dtype == np.float16 and frame.teacher[3].tolist() == teacher.tolist()
    found = duckdb.sql(f"select teacher, tokens from '{store}/*.parquet' where key = '0/3.jpg'").fetchall()
    assert found == [(teacher.tolist(), tokens.tolist())]
    loaded = datasets.load_dataset("parquet", data_dir=str(store), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded[3]["teacher"] == teacher.tolist() and loaded[3]["tokens"] == tokens.tolist()


def test_a_store_without_features_says_nothing_of_them(tmp_path):
    """So versions that knew none read it, and this one reads theirs."""
    part = next(write(tmp_path, (1,)).glob("part-*"))
    written = json.loads(pq.read_schema(part).metadata[b"toklip"])
    assert written == {
        "format": 2,
        "tokenizer": {"name": "mean-colour", "checksum": "0" * 64},
        "codebook_sizes": [300],
        "grid": [4, 4],
        "image_size": 16,
        "resize": "crop",
        "dtype": "float32",
    }
    row = TokenStore(tmp_path)[0]
    assert (row.pooled, row.tokens, row.teacher) == (None, None, None)


@pytest.mark.slow
def test_a_group_of_large_features_is_small_enough_to_read_for_one_row(tmp_path):
    tokens = MODEL.model_copy(update={"width": 18_750, "count": 16})
    writer = PartWriter(tmp_path, INFO.model_copy(update={"tokens": tokens}))
    writer.add(*rows_of(80), {"tokens": torch.zeros(80, 16, 18_750)})
    assert writer.nbytes > 80 * 16 * 18_750 * 2
    writer.flush()
    store = TokenStore(tmp_path)
    assert set(store.group_rows[:-1]) == {55} and sum(store.group_rows) == 80  # of 600 kB
    assert store[79].tokens.shape == (16, 18_750)


def test_a_feature_that_float16_does_not_hold_is_refused(tmp_path):
    writer = PartWriter(tmp_path, INFO.model_copy(update={"pooled": MODEL}))
    with pytest.raises(ValueError, match=r"got pooled up to 7e\+04, but the store has float16, which ends at 65504"):
        writer.add(*rows_of(1), {"pooled": torch.full((1, 6), 70_000.0)})
    assert len(writer) == 0


def test_features_of_another_width_are_damage(tmp_path):
    writer = PartWriter(tmp_path, INFO.model_copy(update={"pooled": MODEL}))
    writer.add(*rows_of(1), {"pooled": torch.zeros(1, 5)})
    writer.flush()
    with pytest.raises(ValueError, match=r"row 0 \('0/0\.jpg'\): 'pooled' has 5 numbers, not 6"):
        TokenStore(tmp_path)[0]


@pytest.mark.parametrize(
    ("codebook_size", "dtype"), [(256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32"), (1, "uint8")]
)
def test_ids_take_the_smallest_type_that_holds_them(tmp_path, codebook_size, dtype):
    ids = torch.tensor([[0, 0], [0, codebook_size - 1]])
    writer = PartWriter(tmp_path, INFO.model_copy(update={"codebook_sizes": (codebook_size,), "grid": (2, 2)}))
    writer.add(["a"], ids[None, ..., None], [None])
    writer.flush()
    part = pq.read_table(next(tmp_path.glob("part-*")))
    assert str(part.schema.field("ids").type.value_type) == dtype
    assert torch.equal(TokenStore(tmp_path)[0].ids, ids[..., None])


@pytest.mark.parametrize("width", [0, 64])
def test_fourteen_bits_of_an_id_take_fourteen_on_disk(tmp_path, width):
    teacher = MODEL.model_copy(update={"width": width}) if width else None
    writer = PartWriter(
        tmp_path, INFO.model_copy(update={"codebook_sizes": (2**14,), "grid": (16, 16), "teacher": teacher})
    )
    ids = torch.randint(0, 2**14, (2000, 16, 16, 1), generator=torch.Generator().manual_seed(0))
    features = {"teacher": torch.zeros(2000, width)} if width else {}
    writer.add([f"{n}.jpg" for n in range(2000)], ids, [None] * 2000, features)
    writer.flush()
    size = next(tmp_path.glob("part-*")).stat().st_size
    assert size < 1.95 * ids.numel()  # 1.75, the dictionary of each group, and the keys


def test_rows_come_by_number_and_in_order_with_their_grid(tmp_path):
    store = TokenStore(write(tmp_path))
    keys, ids, captions = (
        first + second for first, second in zip(map(list, rows_of(7)), map(list, rows_of(4, 1)), strict=True)
    )
    assert len(store) == 11 and list(store.keys()) == keys and store.info == INFO
    assert list(store.captions()) == captions and store.group_rows == (7, 4)
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


def test_stores_can_share_the_rows_that_stay_in_memory(tmp_path):
    cache = RowCache(2000)
    stores = [TokenStore(write(tmp_path / name, (3000,)), cached_rows=cache) for name in "ab"]
    for number in (0, 1000, 2000):
        for store in stores:
            assert store[number].key == f"0/{number}.jpg" and len(cache) <= 2
    sent = pickle.loads(pickle.dumps(stores))
    assert torch.equal(sent[0][3].ids, stores[0][3].ids) and torch.equal(sent[1][3].ids, stores[1][3].ids)
    assert sent[0]._cache is sent[1]._cache


def test_a_reader_can_be_sent_to_a_worker(tmp_path):
    store = TokenStore(write(tmp_path))
    assert store[3].key == "0/3.jpg"
    sent = pickle.loads(pickle.dumps(store))
    assert len(sent._cache) == 0 and torch.equal(sent[3].ids, store[3].ids)


def test_a_writer_goes_on_numbering_and_clears_what_a_kill_left(tmp_path):
    write(tmp_path, (3,))
    for name in ("part-00000-000002.parquet.tmp", "part-00001-000001.parquet.tmp"):
        (tmp_path.parent / f".{tmp_path.name}.{name}").write_bytes(b"half")
        (tmp_path / f".{name}").write_bytes(b"half, inside the store")
    writer = PartWriter(tmp_path, INFO, rank=0, world_size=2)
    left = [*tmp_path.parent.glob(f".{tmp_path.name}.*.tmp"), *tmp_path.glob(".*.tmp")]
    assert {path.name.split("part-")[1] for path in left} == {"00001-000001.parquet.tmp"}  # of another rank
    assert len(left) == 2
    writer.add(*rows_of(2, 1))
    writer.flush()
    writer.flush()
    assert sorted(path.name for path in tmp_path.glob("*.parquet")) == [
        "part-00000-000001.parquet",
        "part-00000-000002.parquet",
    ]
    PartWriter(tmp_path, INFO, rank=0, world_size=1)
    assert not [*tmp_path.parent.glob(f".{tmp_path.name}.*.tmp"), *tmp_path.glob(".*.tmp")]


def test_reports_of_all_ranks_are_one_list_without_what_the_store_holds(tmp_path):
    write(tmp_path, (3,))
    for rank, name in [(0, "a"), (0, "0/1.jpg"), (1, "b"), (1, "a")]:
        folder = tmp_path / ".unreadable" if rank else tmp_path.with_name(f".{tmp_path.name}.unreadable")
        folder.mkdir(exist_ok=True)  # inside where nothing can be renamed into the store
        with (folder / f"rank-{rank:05d}.jsonl").open("a") as file:
            file.write(f'{{"key": "{name}", "source": "s", "reason": "r"}}\n')
    with (tmp_path / ".unreadable/rank-00001.jsonl").open("a") as file:
        file.write('{"key": "cut by a ki')
    assert sorted(row.key for row in TokenStore(tmp_path).unreadable()) == ["a", "b"]
    log = UnreadableLog(tmp_path, rank=1)  # another encode
    for name in ("c", "b", "c"):
        log.add(UnreadablePicture(name, "s", "r"))
    assert sorted(row.key for row in TokenStore(tmp_path).unreadable()) == ["a", "b", "c"]


def test_a_line_of_a_report_that_a_kill_has_cut_costs_no_other_line(tmp_path):
    first, second, third = (UnreadablePicture(name, "s", "it ends in }") for name in "abc")
    log = UnreadableLog(tmp_path)
    log.add(first)
    log.add(second)
    whole = log.path.read_bytes()
    for cut in (1, 2, 9, len(whole) // 2 - 2, *range(len(whole) // 2 + 1, len(whole) - 1)):
        log.path.write_bytes(whole[:cut])
        UnreadableLog(tmp_path).add(third)
        assert read_report(tmp_path) == ({"a": first} if cut > len(whole) // 2 else {}) | {"c": third}


def test_parts_of_two_tokenizers_are_no_store_and_the_differences_are_named(tmp_path):
    write(tmp_path / "a")
    other = TokenizerRecord(name="mean-colour", checksum="1" * 64)
    write(tmp_path / "b", tokenizer=other, image_size=64)
    next((tmp_path / "b").glob("part-*")).rename(tmp_path / "a/part-00009-000001.parquet")
    differences = r"tokenizer.checksum '1+' \(the store: '0+'\), image_size 64 \(the store: 16\)"
    with pytest.raises(ValueError, match=differences):
        TokenStore(tmp_path / "a")


def test_parts_of_two_teachers_are_no_store(tmp_path):
    write(tmp_path / "a")
    writer = PartWriter(tmp_path / "a", INFO.model_copy(update={"teacher": MODEL}), rank=1)
    writer.add(*rows_of(1, 5), {"teacher": torch.zeros(1, 6)})
    writer.flush()
    with pytest.raises(ValueError, match=r"it has teacher.model 'small' \(the store: None\), teacher.weights"):
        TokenStore(tmp_path / "a")


def test_what_is_no_store_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no token store at"):
        TokenStore(tmp_path)
    part = tmp_path / "part-00000-000001.parquet"
    pd.DataFrame({"a": [1]}).to_parquet(part)
    with pytest.raises(ValueError, match="is not part of a token store"):
        TokenStore(tmp_path)
    part.write_bytes(b"PAR1 nonsense")
    with pytest.raises(ValueError, match="is damaged"):
        TokenStore(tmp_path)


def test_a_store_of_a_later_format_is_refused(tmp_path):
    info = INFO.model_copy(update={"format": 3})
    writer = PartWriter(tmp_path, info)
    writer.add(*rows_of(1))
    writer.flush()
    with pytest.raises(ValueError, match=r"is of format 3 of token stores, but .* reads format 2; update toklip-core"):
        TokenStore(tmp_path)


def test_ids_outside_of_the_codebook_or_the_grid_are_damage(tmp_path):
    wrong = {
        "a": (torch.full((1, 4, 4, 1), 300), "300 is in 'ids', but ids are from 0 to 299"),
        "b": (torch.zeros(1, 2, 8, 1), "its grid is 2 x 8, but one of 16 px is 4 x 4"),
    }
    for key, (ids, reason) in wrong.items():
        writer = PartWriter(tmp_path / key, INFO)
        writer.add([key], ids, [None])
        writer.flush()
        with pytest.raises(ValueError, match=rf"part-00000-000001.parquet is damaged: row 0 \('{key}'\): {reason}"):
            TokenStore(tmp_path / key)[0]
