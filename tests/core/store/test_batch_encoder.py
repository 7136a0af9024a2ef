"""BatchEncoder and TokenStore.adopt: rows that other programs share out are those of the built-in engine."""

import multiprocessing
import pickle
import sys
from pathlib import Path

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, Image
from toklip_core.config import Compute
from toklip_core.store import BatchEncoder, EncodeSettings, TokenStore, UnreadableLog, UnreadablePicture, adopt
from toklip_core.store.format import report_paths

from tests.core.conftest import picture
from tests.support.encoding import encode_with
from tests.support.engines import built_in_store, refuse_other_rows, write_pictures
from tests.support.refusals import refusing
from tests.support.small_models import small_clip, small_toklip
from tests.support.starved import no_file_handles, raising, system_error

MEAN_COLOUR = EncodeSettings(tokenizer="mean-colour")


@pytest.fixture
def pictures(toy, tmp_path, monkeypatch):
    """A table of 40 pictures with 4 broken ones in tmp_path, and the same as files."""
    monkeypatch.chdir(tmp_path)
    return write_pictures(Path("pictures"), count=40, broken=4)


def adopted(table, name, encoder):
    Path(name).mkdir()
    pq.write_table(table, Path(name, "rows.parquet"))
    return TokenStore.adopt(name, f"{name}-store", encoder.info)


KINDS = {
    "lists": lambda table: table.to_pydict(),
    "arrays": lambda table: {
        name: np.array(column.to_pylist(), dtype=object)
        for name, column in zip(table.column_names, table.columns, strict=True)
    },
    "arrow": lambda table: table,
    "pandas": lambda table: table.to_pandas(),
    "as datasets stores pictures": lambda table: table.set_column(
        1, "image", pa.array([{"bytes": data, "path": None} for data in table["image"].to_pylist()])
    ),
}


@pytest.mark.skipif(sys.platform == "win32", reason="processes are not forked there")
@pytest.mark.parametrize("called", [False, True], ids=["not called before", "called before"])
def test_a_forked_process_encodes_though_its_parent_has_computed_with_threads(pictures, called):
    """As in `datasets` with num_proc: threads of OpenMP are gone after a fork, and whoever waits for them hangs."""
    encoder, threads = BatchEncoder(MEAN_COLOUR), torch.get_num_threads()
    batch = pa.concat_tables([pictures] * 4)
    batch = batch.set_column(0, "key", pa.array(map(str, range(len(batch)))))
    context = multiprocessing.get_context("fork")
    rows = context.Queue()
    process = context.Process(target=lambda: rows.put((encoder.info, encoder(batch).num_rows)))
    torch.set_num_threads(2)
    try:
        torch.ones(2**20).exp()
        if called:
            encoder(batch)
        process.start()
        process.join(60)
        alive = process.is_alive()
        process.kill()
        assert not alive and rows.get(timeout=9)[1] == len(batch)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_every_kind_of_batch_are_the_built_in_engines(pictures, kind):
    encoder = BatchEncoder(MEAN_COLOUR, Compute(batch_size=7))
    batches = [KINDS[kind](pictures.slice(start, 16)) for start in range(0, 40, 16)]
    rows = [encoder(batch) for batch in batches]
    if kind == "pandas":
        assert all(isinstance(frame, pandas.DataFrame) for frame in rows)
        rows = [pa.Table.from_pandas(frame, preserve_index=False) for frame in rows]
    table = pa.concat_tables(rows, promote_options="permissive")
    assert table["key"].to_pylist() == pictures["key"].to_pylist()  # each error is in its row
    refuse_other_rows(adopted(table, kind, encoder), built_in_store())


def test_features_and_crops_are_rows_as_well(toy, pictures, tmp_path):
    small_toklip().save_pretrained(tmp_path / "toklip")
    small_clip().save_pretrained(tmp_path / "teacher")
    options = {"model": tmp_path / "toklip", "tokens": True, "teacher": tmp_path / "teacher", "augment": "ten-crop"}
    encoder = BatchEncoder(EncodeSettings(**options), Compute(batch_size=8))
    table = encoder(pictures)
    assert table.column_names[-5:] == ["pooled", "tokens", "teacher", "crops", "error"]
    # Spark has neither float16 nor unsigned integers.
    wide = {name: pa.array(table[name].to_pylist()) for name in table.column_names}
    encode_with(["pictures"], "built-in", batch_size=8, **options)
    for name, rows in (("as it is", table), ("wide", pa.table(wide))):
        store = adopted(rows, name, encoder)
        expected = {row.key: row for row in TokenStore("built-in")}
        assert len(store) == len(expected) == 36 and store.info == TokenStore("built-in").info
        for row in store:
            for mine, theirs in zip(row, expected[row.key], strict=True):
                if isinstance(mine, torch.Tensor):
                    torch.testing.assert_close(mine, theirs, rtol=2**-9, atol=2**-11)
                else:
                    assert mine == theirs


def test_it_is_pickled_without_its_models_and_loads_them_at_the_first_call(toy, pictures):
    encoder = BatchEncoder(EncodeSettings(tokenizer="nowhere"))
    assert len(pickle.dumps(encoder)) < 1000
    with refusing("no VQ tokenizer is named 'nowhere'", kind=LookupError):
        encoder(pictures)
    encoder = BatchEncoder(MEAN_COLOUR)
    before = pickle.dumps(encoder)
    rows = encoder(pictures)
    assert pickle.dumps(encoder) == before and pickle.loads(before)(pictures).equals(rows)


def test_a_batch_of_broken_pictures_alone_is_rows_of_errors(toy):
    rows = BatchEncoder(MEAN_COLOUR)({"key": ["a", "b"], "image": [b"broken", None], "caption": ["x", None]})
    assert rows["error"].to_pylist() == ["no picture in a format that is known here", "'image' holds no picture"]
    assert rows["key"].to_pylist() == ["a", "b"] and rows["ids"].null_count == 2
    assert BatchEncoder(MEAN_COLOUR)({"key": [], "image": []}).num_rows == 0


def test_a_picture_above_the_limit_of_pixels_is_an_error_of_its_row(toy, pictures):
    errors = BatchEncoder(MEAN_COLOUR, Compute(max_pixels=100))(pictures)["error"].to_pylist()
    assert all("are more than the limit of 100" in error or "no picture" in error for error in errors)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"path": ["a"], "bytes": [b""]}, "got the columns path, bytes; rename those of keys and files to 'key' and"),
        ({"key": [1], "image": [b""]}, "got the key 1 with the caption None; both must be texts"),
        ({"key": ["a"], "image": [picture(0)]}, "got a Image as the picture 'a'; pass the bytes of its file"),
        ({"key": ["a"], "image": [b""], "caption": [3]}, "got the key 'a' with the caption 3; both must be texts"),
    ],
)
def test_a_batch_that_is_none_is_refused_as_a_whole(toy, batch, message):
    with refusing(message):
        BatchEncoder(MEAN_COLOUR)(batch)


def test_datasets_map_writes_the_built_in_engines_store(pictures, tmp_path):
    table = KINDS["as datasets stores pictures"](pictures)
    rows = Dataset.from_dict(table.to_pydict()).cast_column("image", Image(decode=False))
    encoder = BatchEncoder(MEAN_COLOUR)
    Path("mapped").mkdir()
    encoded = rows.map(encoder, batched=True, batch_size=16, remove_columns=rows.column_names)
    encoded.to_parquet("mapped/rows.parquet")
    refuse_other_rows(TokenStore.adopt("mapped", "store", encoder.info), built_in_store())


def test_an_adopted_store_takes_more_rows_and_skips_those_that_are_there(pictures):
    encoder = BatchEncoder(MEAN_COLOUR)
    Path("rows").mkdir()
    pq.write_table(encoder(pictures.slice(0, 20)), "rows/1.parquet")
    first = TokenStore.adopt("rows", "store", encoder.info)
    parts = {path.name: path.read_bytes() for path in Path("store").glob("part-*")}
    pq.write_table(encoder(pictures.slice(20)), "rows/2.parquet")
    second = TokenStore.adopt("rows", "store", encoder.info)
    assert len(first) == 18 and len(second) == 36
    assert all(Path("store", name).read_bytes() == data for name, data in parts.items())
    refuse_other_rows(second, built_in_store())
    # The built-in engine goes on with it, too.
    Path("pictures/more.png").write_bytes(Path("pictures/0001.png").read_bytes())
    report = encode_with(["pictures"], "store", tokenizer="mean-colour")
    assert (report.pictures, report.skipped, report.unreadable) == (1, 36, 4)


def test_adopted_rows_leave_the_report_of_earlier_ones(pictures):
    encoder = BatchEncoder(MEAN_COLOUR)
    UnreadableLog(Path("store")).add(UnreadablePicture("of toklip encode", "a file", "broken"))
    for folder, rows in {"first": pictures.slice(0, 20), "second": pictures.slice(20)}.items():
        Path(folder).mkdir()
        pq.write_table(encoder(rows), f"{folder}/rows.parquet")
        for _ in range(2):
            store = TokenStore.adopt(folder, "store", encoder.info)
    broken = [f"pictures/{number:04}.png" for number in (0, 10, 20, 30)]
    assert sorted(row.key for row in store.unreadable()) == ["of toklip encode", *broken]
    lines = [line for path in report_paths(Path("store")) for line in path.read_text().splitlines()]
    assert len(lines) == 5


def test_a_file_of_errors_alone_joins_the_report_whatever_the_type_of_its_columns(pictures):
    encoder = BatchEncoder(MEAN_COLOUR)
    rows = encoder(pictures)
    broken = rows.filter(pc.is_valid(rows["error"]))
    Path("rows").mkdir()
    pq.write_table(pa.table(broken.to_pydict()), "rows/0.parquet")
    assert pa.types.is_null(pq.read_schema("rows/0.parquet").field("ids").type)
    pq.write_table(rows.filter(pc.is_null(rows["error"])), "rows/1.parquet")
    store = TokenStore.adopt("rows", "store", encoder.info)
    assert len(store) == 36 and len(store.unreadable()) == 4


def first_id(row, value):
    return lambda columns: columns["ids"][row].__setitem__(0, value)


def all_are(name, value):
    return lambda columns: columns.update({name: [value] * 40})


#: What is changed in 40 rows, of which 0, 10, 20 and 30 have an error, and what is said of it.
WRONG = {
    "an id above all": (first_id(11, 300), ("row 11 ('pictures/0011.png'): 300 is in 'ids', but ids are from",)),
    "an id below all": (first_id(39, -1), ("row 39 ('pictures/0039.png'): -1 is in", "encode its pictures again")),
    "too few ids": (all_are("ids", [1]), ("row 1 ('pictures/0001.png'): 'ids' has 1 numbers, not 64",)),
    "no ids": (all_are("ids", None), ("'ids' is null, not list<",)),
    "a row without ids": (lambda columns: columns["ids"].__setitem__(5, None), ("it has no 'ids'", "row 5")),
    "texts as ids": (all_are("ids", "1"), ("'ids' is string, not list<",)),
    "lists of texts as ids": (all_are("ids", ["x"]), ("'ids' is list<", "not list<")),
    "another grid": (all_are("height", 4), ("its grid is 4 x 8, but one of 32 px is 8 x 8",)),
    "a column less": (lambda columns: columns.pop("width"), ("it has no 'width'; its columns: key, ids, height, ",)),
    "no keys": (lambda columns: columns.pop("key"), ("it has no 'key'; its columns: ids, height",)),
    "a key twice": (all_are("key", "a"), ("the key 'a' is there twice, as when two jobs wrote into one folder",)),
    "a null key": (lambda columns: columns["key"].__setitem__(5, None), ("row 5: it has no 'key'",)),
    "a null key beside an error": (lambda columns: columns["key"].__setitem__(10, None), ("row 10: it has no 'key'",)),
    "numbers as keys": (lambda columns: columns.update(key=list(range(40))), ("'key' is int64, not string",)),
}


@pytest.mark.parametrize("name", WRONG)
def test_rows_that_do_not_fit_are_refused_with_the_file_and_the_row(pictures, name):
    encoder = BatchEncoder(MEAN_COLOUR)
    columns = encoder(pictures).to_pydict()
    change, messages = WRONG[name]
    change(columns)
    with refusing("rows.parquet cannot be adopted: ", *messages):
        adopted(pa.table(columns), "rows", encoder)
    assert not list(Path("rows-store").glob("part-*"))


def test_what_cannot_be_adopted_from_is_one_line(pictures):
    info = BatchEncoder(MEAN_COLOUR).info
    with refusing("no Parquet file in nowhere", kind=FileNotFoundError):
        TokenStore.adopt("nowhere", "store", info)
    Path("rows").mkdir()
    for name in ("_temporary", ".part"):
        Path("rows", f"{name}.parquet").write_bytes(b"unfinished")
    with refusing("no Parquet file in rows", kind=FileNotFoundError):
        TokenStore.adopt("rows", "store", info)
    with refusing("got rows/store as the store and rows as the folder of rows"):
        TokenStore.adopt("rows", "rows/store", info)
    Path("rows/cut.parquet").write_bytes(b"PAR1")
    with refusing("cut.parquet cannot be adopted: "):
        TokenStore.adopt("rows", "store", info)


def test_rows_of_another_tokenizer_are_refused_by_a_store(pictures):
    encoder = BatchEncoder(MEAN_COLOUR)
    adopted(encoder(pictures), "rows", encoder)
    with refusing("the info of these rows does not fit the store rows-store: it has tokenizer.name"):
        TokenStore.adopt("rows", "rows-store", BatchEncoder(EncodeSettings(tokenizer="residual-greys")).info)


def test_a_machine_that_cannot_read_rows_does_not_refuse_their_file(pictures, monkeypatch):
    encoder = BatchEncoder(MEAN_COLOUR)
    adopted(encoder(pictures), "rows", encoder)
    with pytest.raises(OSError, match="Too many open files"), no_file_handles():
        list(adopt._groups(Path("rows/rows.parquet"), ["key"]))
    for error in (system_error("EIO"), pa.ArrowMemoryError("malloc of size 64 failed")):
        monkeypatch.setattr(adopt.pq, "ParquetFile", raising(error))
        with pytest.raises(type(error)) as raised:
            list(adopt._groups(Path("rows/rows.parquet"), ["key"]))
        assert str(raised.value).count("rows/rows.parquet: ") == 1
