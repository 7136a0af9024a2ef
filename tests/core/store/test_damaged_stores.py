"""A damaged token store gives the right rows, or one line with file and row that is the same in every command."""

import json
import random
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from toklip_core.captioned import CaptionedSamples, CaptionedStore
from toklip_core.cli import cli
from toklip_core.embeddings import MOST_BITS
from toklip_core.files import is_machine_error
from toklip_core.pictures import VIEWS
from toklip_core.store import FeatureInfo, PartWriter, StoreInfo, TokenStore, part_reader
from toklip_core.store.part_reader import part_contents, read_group
from toklip_core.tokenizer import TokenizerRecord

from tests.support.encoding import encode_with
from tests.support.refusals import refusing
from tests.support.small_models import SIZE, small_toklip
from tests.support.starved import no_file_handles, raising, system_error

MODEL = FeatureInfo(model="small", weights_checksum="2" * 64, width=6)
INFO = StoreInfo(
    tokenizer=TokenizerRecord(name="mean-colour", checksum="0" * 64),
    codebook_sizes=(300,),
    grid=(4, 4),
    image_size=16,
    resize="crop",
    dtype="float32",
    augment="ten-crop",
    pooled=MODEL,
    tokens=MODEL.model_copy(update={"width": 4, "count": 16}),
    teacher=MODEL,
)
NAME = "part-00000-000001.parquet"
#: Longest that a message may be beside the path that it names: three lines, less those of a path.
LONGEST = 300


def write(path, keys="abcdefg"):
    """A part with every column that there is, of seven rows if nobody says otherwise; return its path."""
    draw = torch.Generator().manual_seed(0)
    count = len(keys)
    writer = PartWriter(path, INFO)
    shapes = {"pooled": (count, 6), "tokens": (count, 16, 4), "teacher": (count, 6)}
    writer.add(
        [f"{key}.jpg" for key in keys],
        torch.randint(0, 300, (count, 4, 4, 1), generator=draw),
        [f"picture {key}" if number % 2 else None for number, key in enumerate(keys)],
        {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()},
        torch.randint(0, 300, (count, VIEWS, 4, 4, 1), generator=draw),
    )
    writer.flush()
    return max(path.glob("part-*"))


def contents(store):
    """All that a store says."""
    opened = TokenStore(store)
    rows = [[value.tolist() if isinstance(value, torch.Tensor) else value for value in row] for row in opened]
    return opened.info, len(opened), rows, list(opened.captions())


def is_right_or_one_line(part, right):
    """Whether reading a store gives what it was, or one line that names the part; which of them."""
    try:
        assert contents(part.parent) == right, "wrong rows, and nothing said"
    except ValueError as error:
        message = str(error)
        assert message.startswith(str(part)) and "\n" not in message, message
        assert len(message) < len(str(part)) + LONGEST, message
        return "one line"
    return "right"


@pytest.mark.slow
def test_a_flipped_bit_anywhere_in_a_part_gives_the_right_rows_or_one_line(tmp_path):
    part = write(tmp_path)
    right, good = contents(tmp_path), part.read_bytes()
    outcomes = []
    for place in random.Random(0).sample(range(8 * len(good)), 400):
        damaged = bytearray(good)
        damaged[place // 8] ^= 1 << place % 8
        part.write_bytes(damaged)
        outcomes.append(is_right_or_one_line(part, right))
    assert outcomes.count("one line") > 200  # and the others lie where nobody reads, as in statistics of columns


@pytest.mark.slow
def test_any_byte_written_over_and_any_cut_give_the_right_rows_or_one_line(tmp_path):
    part = write(tmp_path)
    right, good = contents(tmp_path), part.read_bytes()
    draw = random.Random(1)
    for place in draw.sample(range(len(good)), 200):
        for byte in {0, 255, draw.randrange(256)}:
            part.write_bytes(good[:place] + bytes([byte]) + good[place + 1 :])
            is_right_or_one_line(part, right)
    for size in [0, 1, 3, 4, 8, 11, 12, len(good) - 1, *draw.sample(range(len(good)), 40)]:
        part.write_bytes(good[:size])
        assert is_right_or_one_line(part, right) == "one line"
        part.write_bytes(good[:size] + bytes(len(good) - size))  # of a file system that lost power
        is_right_or_one_line(part, right)


def test_a_damaged_page_is_named_with_the_rows_of_its_group(tmp_path):
    """The second group of 2,500 rows is named, whoever reads it; the others are read as they are."""
    writer = PartWriter(tmp_path, INFO.model_copy(update=dict.fromkeys(("augment", "pooled", "tokens", "teacher"))))
    ids = torch.randint(0, 300, (2500, 4, 4, 1), generator=torch.Generator().manual_seed(0))
    writer.add([str(number) for number in range(2500)], ids, [None] * 2500)
    writer.flush()
    part = tmp_path / NAME
    with pq.ParquetFile(part) as file:
        column = file.metadata.row_group(1).column(1)
    damaged = bytearray(part.read_bytes())
    damaged[column.data_page_offset + column.total_compressed_size // 3] ^= 4
    part.write_bytes(damaged)
    store = TokenStore(tmp_path)
    assert torch.equal(store[999].ids, ids[999]) and torch.equal(store[2000].ids, ids[2000])
    for read in (lambda: store[1500], lambda: list(store)):
        with pytest.raises(ValueError, match=rf"{NAME} is damaged: rows 1000 to 1999: .*CRC.* delete it, and `toklip"):
            read()


def test_pages_of_every_column_have_the_checksums_that_other_readers_look_at(tmp_path):
    """One byte of each column's data is another; pyarrow alone finds that."""
    part = write(tmp_path)
    good = part.read_bytes()
    with pq.ParquetFile(part) as file:
        columns = [file.metadata.row_group(0).column(number) for number in range(file.metadata.num_columns)]
    for column in columns:
        start = column.dictionary_page_offset or column.data_page_offset
        damaged = bytearray(good)
        damaged[start + column.total_compressed_size - 1] ^= 1  # the last byte of the last page
        part.write_bytes(damaged)
        with pytest.raises(OSError, match="CRC"):
            pq.read_table(part, columns=[column.path_in_schema.split(".")[0]], page_checksum_verification=True)


def rewrite(part, change=lambda table: table, metadata=lambda raw: raw, checksums=False):
    """Write a part again with another table or metadata, without checksums unless they are to be kept."""
    table = pq.read_table(part, partitioning=None)
    kept = {b"toklip": metadata(table.schema.metadata[b"toklip"])}
    if checksums:
        kept[b"toklip.crc32"] = table.schema.metadata[b"toklip.crc32"]
    changed = change(table)
    pq.write_table(changed.replace_schema_metadata({key: value for key, value in kept.items() if value}), part)


def test_a_store_without_checksums_is_read_as_before(tmp_path):
    part = write(tmp_path)
    right = contents(tmp_path)
    rewrite(part)
    assert b"toklip.crc32" not in pq.read_schema(part).metadata and contents(tmp_path) == right


def column(name, values, kind=None):
    """A change of a table: other values of a column, or a function of what they are; perhaps of another type."""

    def change(table):
        found = values(table[name].to_pylist()) if callable(values) else values
        array = pa.array(found, kind or table.schema.field(name).type)
        return table.set_column(table.column_names.index(name), name, array)

    return change


def at(row, value):
    """A function of a list: with another value, or a function of what it is, in one place."""
    return lambda values: [
        (value(old) if callable(value) else value) if place == row else old for place, old in enumerate(values)
    ]


half = pa.list_(pa.float16())
#: What was done -> the change of the table, and what is said after the name of the part.
EDITED = {
    "a negative side": (column("height", at(2, -4)), r"row 2 \('c.jpg'\): its grid is -4 x 4, but one of 16 px is"),
    "a side of zero": (column("width", at(2, 0)), r"row 2 \('c.jpg'\): its grid is 4 x 0, but one of 16 px is 4 x 4"),
    "a grid of as many": (
        lambda table: column("width", at(1, 8))(column("height", at(1, 2))(table)),
        r"row 1 \('b.jpg'\): its grid is 2 x 8, but one of 16 px is 4 x 4",
    ),
    "no height": (column("height", at(3, None)), r"row 3 \('d.jpg'\): it has no 'height'"),
    "no width": (column("width", at(3, None)), r"row 3 \('d.jpg'\): it has no 'width'"),
    "no key": (column("key", at(3, None)), "row 3: it has no 'key'"),
    "keys that are numbers": (column("key", range(7), pa.int64()), "the column 'key' is int64, not string"),
    "keys that are bytes": (
        column("key", [b"\xff"] * 7, pa.binary()),
        "the column 'key' is binary, not string",
    ),
    "two rows of one key": (column("key", at(4, "b.jpg")), r"row 4 has the key 'b.jpg', as row 1 of .*NAME has"),
    "no ids": (column("ids", at(5, None)), r"row 5 \('f.jpg'\): it has no 'ids'"),
    "an id too few": (column("ids", at(5, lambda ids: ids[1:])), r"row 5 \('f.jpg'\): 'ids' has 15 numbers, not 16"),
    "an id too many": (column("ids", at(0, lambda ids: [*ids, 1])), r"row 0 \('a.jpg'\): 'ids' has 17 numbers, not 16"),
    "an id that is missing": (
        column("ids", at(6, lambda ids: [*ids[1:], None])),
        r"row 6 \('g.jpg'\): a number of 'ids' is missing",
    ),
    "an id beyond the codebook": (
        column("ids", at(6, lambda ids: [*ids[1:], 300])),
        r"row 6 \('g.jpg'\): 300 is in 'ids', but ids are from 0 to 299",
    ),
    "negative ids": (
        column("ids", at(6, lambda ids: [-1] * 16), pa.list_(pa.int16())),
        r"the column 'ids' is list<.*: int16>, not list<.*: uint16>",
    ),
    "ids that are not lists": (
        column("ids", range(7), pa.uint16()),
        r"the column 'ids' is uint16, not list<.*: uint16>",
    ),
    "a column that is not there": (lambda table: table.drop_columns(["ids"]), "the column 'ids' is there 0 times"),
    "a feature that is not there": (
        lambda table: table.drop_columns(["teacher"]),
        "the column 'teacher' is there 0 times",
    ),
    "a column that is there twice": (
        lambda table: table.append_column("key", table["key"]),
        "the column 'key' is there 2 times",
    ),
    "captions that are numbers": (
        column("caption", [1.5] * 7, pa.float64()),
        "the column 'caption' is double, not",
    ),
    "a feature that is too long": (
        column("pooled", at(2, lambda numbers: [*numbers, np.float16(0)])),
        r"row 2 \('c.jpg'\): 'pooled' has 7 numbers, not 6",
    ),
    "no feature": (column("teacher", at(2, None)), r"row 2 \('c.jpg'\): it has no 'teacher'"),
    "a feature of NaN": (
        column("tokens", at(2, lambda numbers: [np.float16("nan"), *numbers[1:]])),
        r"row 2 \('c.jpg'\): a number of 'tokens' is not finite",
    ),
    "a feature of infinity": (
        column("teacher", at(2, lambda numbers: [np.float16("-inf"), *numbers[1:]])),
        r"row 2 \('c.jpg'\): a number of 'teacher' is not finite",
    ),
    "features of another type": (
        column("pooled", lambda rows: rows, pa.list_(pa.float32())),
        r"the column 'pooled' is list<.*: float>, not list<.*: halffloat>",
    ),
    "crops of one view less": (
        column("crops", at(2, lambda ids: ids[16:])),
        r"row 2 \('c.jpg'\): 'crops' has 304 numbers, not 320",
    ),
    "a crop beyond the codebook": (
        column("crops", at(2, lambda ids: [65535, *ids[1:]])),
        r"row 2 \('c.jpg'\): 65535 is in 'crops', but ids are from 0 to 299",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", EDITED)
@pytest.mark.parametrize("checksums", [False, True], ids=["older", "with checksums"])
def test_an_edited_column_is_named_with_its_row(tmp_path, what, checksums):
    change, message = EDITED[what]
    part = write(tmp_path)
    right = contents(tmp_path)
    rewrite(part, change, checksums=checksums)
    assert is_right_or_one_line(part, right) == "one line"
    if checksums and what == "two rows of one key":
        message = "rows 0 to 6 of the column 'key' have another checksum than when written"
    with pytest.raises(ValueError, match=f"{re.escape(str(part))} is damaged: {message.replace('NAME', NAME)}"):
        contents(tmp_path)


def test_values_that_are_right_but_others_than_those_written_are_found_by_their_checksum(tmp_path):
    """The column and its rows are named; a caption is checked as ids are."""
    for name, change in {"ids": at(3, lambda ids: ids[::-1]), "caption": at(0, "of another picture")}.items():
        part = write(tmp_path / name)
        rewrite(part, column(name, change), checksums=True)
        message = f"rows 0 to 6 of the column '{name}' have another checksum than when written"
        with pytest.raises(ValueError, match=message):
            contents(part.parent)


def test_bytes_that_are_no_text_are_damage(tmp_path):
    part = write(tmp_path)
    text = pa.Array.from_buffers(pa.string(), 7, pa.array([b"\xff\xfe"] * 7, pa.binary()).buffers())
    rewrite(part, lambda table: table.set_column(4, "caption", text))
    with pytest.raises(ValueError, match=rf"{NAME} is damaged: rows 0 to 6: .*[Uu][Tt][Ff]"):
        contents(tmp_path)


#: What the metadata say -> the message after the name of the part.
METADATA = {
    b"[]": "is damaged: what its ids mean cannot be read from its metadata: Input should be an object",
    b"null": "is damaged: what its ids mean cannot be read from its metadata: Input should be an object",
    b'{"format": 1, "toke': "is damaged: what its ids mean cannot be read from its metadata: Invalid JSON",
    b"\xff\x00": "is damaged: what its ids mean cannot be read from its metadata: Invalid JSON",
    b"": "is not part of a token store: its metadata has no 'toklip'; take it out of the folder",
}


@pytest.mark.parametrize("raw", METADATA)
def test_metadata_that_are_not_a_stores_are_one_line(tmp_path, raw):
    part = write(tmp_path)
    rewrite(part, metadata=lambda _: raw)
    with pytest.raises(ValueError, match=re.escape(f"{part} {METADATA[raw]}")):
        TokenStore(tmp_path)
    assert is_right_or_one_line(part, None) == "one line"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": "x"}, "tokenizer: Input should be"),
        ({"tokenizer": {"name": None}}, "tokenizer.name: Input should be a valid string"),
        ({"codebook_sizes": [-5]}, "codebook_sizes.0: Input should be greater than 0"),
        ({"codebook_sizes": [2**70]}, f"codebook_sizes.0: Input should be less than or equal to {2**MOST_BITS}"),
        ({"image_size": 1.5}, "image_size: Input should be a valid integer"),
        ({"resize": "x" * 5000}, "resize: Input should be 'crop', 'squash' or 'pad'"),
        ({"teacher": []}, "teacher: Input should be"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
    ],
)
def test_a_wrong_value_of_the_metadata_is_named(tmp_path, changes, message):
    part = write(tmp_path)
    rewrite(part, metadata=lambda raw: json.dumps(json.loads(raw) | changes).encode())
    with pytest.raises(ValueError, match=re.escape(message)):
        TokenStore(tmp_path)
    assert is_right_or_one_line(part, None) == "one line"


@pytest.mark.parametrize("raw", [b"[]", b"{}", b"null", b'{"toklip": 1, "rows"', b"\xff", b'{"toklip": 1, "rows": 7}'])
def test_a_damaged_list_of_checksums_is_one_line(tmp_path, raw):
    part = write(tmp_path)
    table = pq.read_table(part, partitioning=None)
    pq.write_table(table.replace_schema_metadata(table.schema.metadata | {b"toklip.crc32": raw}), part)
    with pytest.raises(ValueError, match=rf"{NAME} is damaged: its (list of checksums|metadata)"):
        TokenStore(tmp_path)
    assert is_right_or_one_line(part, None) == "one line"


@pytest.mark.parametrize(
    ("found", "shown", "do"),
    [
        (3, "3", "update toklip-core"),
        (1, "1", "encode the pictures again, into another store"),
        (0, "0", "encode the pictures again, into another store"),
        ("one", "one", "encode the pictures again, into another store"),
        (None, "None", "encode the pictures again, into another store"),
    ],
)
def test_a_store_of_another_format_is_refused_with_what_to_do(tmp_path, found, shown, do):
    """A later one may have more keys, and mean other things by those that there are."""

    def change(raw):
        values = json.loads(raw)
        assert values.pop("format") == 2  # every part says it
        return json.dumps(values | ({} if found is None else {"format": found, "later": True})).encode()

    part = write(tmp_path)
    rewrite(part, metadata=change)
    message = f"{part} is of format {shown} of token stores, but this version of toklip-core reads format 2; {do}"
    if found is None:
        message = f"{part} does not say of which format of token stores it is"
    with pytest.raises(ValueError, match=re.escape(message)):
        TokenStore(tmp_path)


def test_parts_that_are_no_files_and_copies_of_parts_are_named(tmp_path):
    part = write(tmp_path)
    right = contents(tmp_path)
    (tmp_path / "part-00000-000002.parquet").mkdir()
    with pytest.raises(ValueError, match=r"part-00000-000002\.parquet is a folder, but has the name of a part"):
        TokenStore(tmp_path)
    (tmp_path / "part-00000-000002.parquet").rmdir()
    (tmp_path / "part-00000-000002.parquet").symlink_to("nowhere")
    with pytest.raises(ValueError, match=r"part-00000-000002\.parquet is a link to nothing"):
        TokenStore(tmp_path)
    (tmp_path / "part-00000-000002.parquet").unlink()
    for name in ("part-00000-000001 (copy).parquet", "part-00000-000001(1).parquet", "part-1.parquet"):
        (tmp_path / name).write_bytes(part.read_bytes())
        for read in (lambda: TokenStore(tmp_path), lambda: PartWriter(tmp_path, INFO)):
            message = re.escape(f"{tmp_path / name} is named like a part of a token store, but not part-RRRRR-NNNNNN")
            with pytest.raises(ValueError, match=message):
                read()
        (tmp_path / name).unlink()
    (tmp_path / "part-00003-000001.parquet").write_bytes(part.read_bytes())
    with pytest.raises(ValueError, match=r"00003-000001\.parquet is damaged: row 0 has the key 'a.jpg', as row 0 of"):
        contents(tmp_path)
    (tmp_path / "part-00003-000001.parquet").unlink()
    assert contents(tmp_path) == right


def test_a_part_without_rows_adds_none(tmp_path):
    part = write(tmp_path)
    right = contents(tmp_path)
    pq.write_table(pq.read_table(part, partitioning=None).slice(0, 0), tmp_path / "part-00000-000002.parquet")
    assert is_right_or_one_line(tmp_path / "part-00000-000002.parquet", right) == "one line"  # of 7 rows, it says
    rewrite(part)
    pq.write_table(pq.read_table(part, partitioning=None).slice(0, 0), tmp_path / "part-00000-000002.parquet")
    assert contents(tmp_path) == right


@pytest.fixture
def commands(toy, photos, tmp_path, monkeypatch):
    """A store of the photos, and a function: what every command that reads all of a store says."""
    monkeypatch.chdir(tmp_path)
    small_toklip().save_pretrained("model")
    for number, path in enumerate(sorted(Path("photos").rglob("*.*"))):
        path.with_suffix(".txt").write_text(f"caption {number}")
    encode_with(["photos"], "store", tokenizer="mean-colour", image_size=SIZE, resize="squash")
    encode = ["encode", "photos", "--out", "store", "--tokenizer", "mean-colour", "--size", str(SIZE)]

    def said():
        lines = {}
        for words in (
            ["decode", "store", "--out", "out"],
            ["search", "store", "a red star", "--model", "model"],
            [*encode, "--resize", "squash", "--workers", "0"],
        ):
            result = CliRunner().invoke(cli, words)
            assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
            lines[words[0]] = result.stderr if result.exit_code else ""
        try:
            samples = CaptionedSamples(
                [CaptionedStore(kind="store", store="store")], image_size=SIZE, resize="squash", seed=0
            )
            [samples[0, number] for number in range(len(samples))]
            lines["train"] = ""
        except ValueError as error:
            lines["train"] = f"Error: {error}\n"
        return lines

    return said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (column("height", at(2, -4)), "row 2 ('photos/c.webp'): its grid is -4 x "),
        (column("key", range(5), pa.int64()), "the column 'key' is int64, not string"),
        (column("key", at(4, "photos/a.jpg")), "row 4 has the key 'photos/a.jpg', as row 0 of store/"),
        (lambda table: table.drop_columns(["height"]), "the column 'height' is there 0 times, not int32"),
        (column("key", at(1, None)), "row 1: it has no 'key'"),
    ],
)
def test_every_command_says_the_same_of_a_damaged_store(commands, change, message):
    assert set(commands().values()) == {""}
    rewrite(Path("store") / NAME, change)
    lines = commands()
    if "grid" in message:  # of which `encode` reads the keys alone
        assert lines.pop("encode") == ""
    (line,) = set(lines.values())
    assert line.startswith(f"Error: store/{NAME} is damaged: {message}") and line.count("\n") == 1, lines


def test_every_command_says_the_same_of_copies_and_of_another_format(commands):
    part = Path("store") / NAME
    copy = part.with_name("part-00000-000001 (copy).parquet")
    copy.write_bytes(part.read_bytes())
    (line,) = set(commands().values())
    assert line.startswith(f"Error: {copy} is named like a part") and line.count("\n") == 1
    copy.unlink()
    rewrite(part, metadata=lambda raw: raw.replace(b'"format":2', b'"format":7'))
    (line,) = set(commands().values())
    assert line.startswith(f"Error: {part} is of format 7 of token stores") and line.count("\n") == 1


def test_a_tokenizer_that_is_not_there_is_named_with_the_nearest_and_no_list(commands):
    rewrite(Path("store") / NAME, metadata=lambda raw: raw.replace(b'"mean-colour"', b'"mean-color"'))
    assert commands()["decode"] == (
        "Error: the token store store: no VQ tokenizer is named 'mean-color'. Did you mean 'mean-colour'? "
        "`toklip tokenizers` lists what is installed.\n"
    )


@pytest.mark.parametrize(
    "error", [*map(system_error, ("EMFILE", "EIO", "ESTALE")), pa.ArrowMemoryError("malloc of size 64 failed")]
)
def test_a_machine_that_cannot_read_a_good_part_does_not_call_it_damaged(tmp_path, monkeypatch, error):
    part = write(tmp_path)
    monkeypatch.setattr(part_reader.pq.ParquetFile, "read_row_group", raising(error))
    with pytest.raises(type(error)) as raised:
        read_group(part, 0, ["ids"])
    assert is_machine_error(raised.value) and str(raised.value).count(str(part)) == 1
    monkeypatch.setattr(part_reader.pq, "ParquetFile", raising(error))
    with pytest.raises(type(error)) as raised:
        part_contents(part)
    assert is_machine_error(raised.value) and str(raised.value).count(str(part)) == 1


def test_too_many_open_files_are_said_as_they_are(tmp_path):
    part = write(tmp_path)
    right = contents(tmp_path)
    with refusing(str(part), "Too many open files", kind=OSError), no_file_handles():
        part_contents(part)
    assert contents(tmp_path) == right
