"""Pictures in a column of a Parquet file, and captions in an imagefolder's table: encoding and training agree."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from toklip_core.captioned import CaptionedDataset, CaptionedPictures, CaptionedSamples
from toklip_core.cli import cli
from toklip_core.evaluation import search_pictures
from toklip_core.pictures import PictureError, entries, find_pictures, open_picture
from toklip_core.store import TokenStore, read_report

from tests.core.captioned.test_samples import bytes_of, rows_of_pictures  # noqa: F401  (a fixture)
from tests.core.conftest import picture
from tests.support.encoding import encode_with
from tests.support.small_models import small_toklip

STORED = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def parquet(path, numbers, image=STORED, name="image", **columns):
    """A file of pictures by number; None is a null."""
    cells = [None if number is None else bytes_of(picture(number)) for number in numbers]
    if image == STORED:
        cells = [{"bytes": cell, "path": cell and f"{number}.png"} for number, cell in zip(numbers, cells, strict=True)]
    pq.write_table(pa.table({name: pa.array(cells, image), **columns}), path, row_group_size=2)
    return path


def rows(store):
    return {row.key: row.caption for row in TokenStore(store)}


@pytest.fixture
def here(toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def encode(*inputs, store="store", **options):
    return encode_with(inputs, store, tokenizer="mean-colour", image_size=32, **options)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("image", "name"), [(STORED, "image"), (pa.binary(), "image"), (STORED, "img")])
def test_the_pictures_of_a_parquet_file_are_encoded_with_their_captions(here, workers, image, name):
    file = parquet(here / "img.parquet", [0, 1, 2, 3, 4], image, name, caption=["zero", "one", None, "", "four"])
    report = encode("img.parquet", workers=workers)
    assert (report.pictures, report.unreadable) == (5, 0)
    captions = ["zero", "one", None, None, "four"]
    assert rows("store") == {f"img.parquet/{n:08d}": text for n, text in enumerate(captions)}
    for number in range(5):
        picture(number).save(here / f"{number}.png")
    encode(*(f"{number}.png" for number in range(5)), store="files")
    ids = {row.key: row.ids for row in TokenStore("files")}
    for row in TokenStore("store"):
        assert torch.equal(row.ids, ids[f"{int(row.key[-8:])}.png"])
    assert encode(str(file.relative_to(here))).skipped == 5


def test_rows_of_one_picture_are_one_row_of_a_store_and_one_hit_of_a_search(here, caplog):
    parquet(here / "img.parquet", [0, 1, 0, 1, 0], caption=[None, "one", "zero", "another", "third"])
    assert encode("img.parquet").pictures == 2
    assert rows("store") == {"img.parquet/00000000": "zero", "img.parquet/00000001": "one"}
    assert "2 pictures of img.parquet have several captions; a store keeps the first of each" in caplog.text
    small_toklip().save_pretrained("model")
    for where in ("img.parquet", "store"):
        found = search_pictures("model", [where], "a red star")
        assert sorted(hit.picture.name for hit in found.hits) == ["img.parquet/00000000", "img.parquet/00000001"]


def test_a_parquet_file_has_the_pictures_and_captions_that_training_reads(here, rows_of_pictures):  # noqa: F811
    captions = [["one", None], ["two"], ["three", "four"], [None], ["five"]]
    file = parquet(here / "img.parquet", [0, 1, 0, 2, 1], caption=captions)
    source = CaptionedDataset(kind="dataset", files=(str(file),))
    data = CaptionedSamples([source], image_size=32, resize="crop", seed=0)
    found = list(entries(find_pictures(["img.parquet"])))
    assert (len(found), len(data)) == (3, 2)  # a picture without captions is encoded, and no training reads it
    assert [entry.captions() for entry in found] == [["one", "three", "four"], ["two", "five"], []]
    for index, entry in enumerate(found[:2]):
        assert {data[epoch, index]["caption"] for epoch in range(60)} == set(entry.captions())
        assert np.array_equal(entry.image(), open_picture(_file(here, index)))


def _file(here, number):
    picture(number).save(here / f"{number}.png")
    return here / f"{number}.png"


def test_what_is_wrong_with_a_parquet_file_is_reported_and_the_others_are_encoded(here):
    parquet(here / "good.parquet", [0, None], caption=["zero", "none"])
    (here / "cut.parquet").write_bytes((here / "good.parquet").read_bytes()[:-30])
    pq.write_table(pa.table({"key": ["a"]}), here / "other.parquet")
    pq.write_table(pa.table({"image": pa.array([b"no picture"], pa.binary()), "text": [3]}), here / "bad.parquet")
    report = encode("*.parquet")
    assert (report.pictures, report.unreadable) == (1, 4)
    why = {key: row.reason for key, row in read_report(here / "store").items()}
    assert "other.parquet has no column 'image'; its columns: key" in why["other.parquet"]
    assert why["cut.parquet"].startswith("no Parquet file of pictures, or a damaged one: ")
    assert why["good.parquet/00000001"] == "'image' holds no picture"
    assert why["bad.parquet/00000000"] == "no picture in a format that is known here"


def test_a_parquet_file_that_changes_between_two_encodes_of_a_process_is_read_again(here):
    for number in (0, 1):
        parquet(here / "img.parquet", [number])
        encode("img.parquet", store=f"of-parquet-{number}")
        encode(_file(here, number), store=f"of-file-{number}")
        ids = [next(iter(TokenStore(f"of-{kind}-{number}"))).ids for kind in ("parquet", "file")]
        assert torch.equal(*ids)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", ["image", "caption"])
def test_a_parquet_file_with_a_column_twice_is_reported_and_the_others_are_encoded(here, workers, name):
    good = pq.read_table(parquet(here / "good.parquet", [0, 1, 2], caption=["zero", "one", "two"]))
    twice = [*good.columns, good.column(name)]
    pq.write_table(pa.Table.from_arrays(twice, names=["image", "caption", name]), here / "bad.parquet")
    report = encode("bad.parquet", "good.parquet", workers=workers, batch_size=1)
    assert (report.pictures, report.unreadable) == (3, 1)
    (row,) = read_report(here / "store").values()
    assert (row.key, row.source) == ("bad.parquet", "bad.parquet")
    assert f"bad.parquet has the column {name!r} twice" in row.reason


TEXTS = {
    "dictionary": pa.dictionary(pa.int32(), pa.string()),
    "string_view": pa.string_view(),
    "list of string_view": pa.list_(pa.string_view()),
    "list of dictionary": pa.list_(pa.dictionary(pa.int32(), pa.string())),
    "two of string": pa.list_(pa.string(), 2),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_captions_are_read_however_arrow_writes_texts_in_an_encode_and_in_training(here, rows_of_pictures, kind):  # noqa: F811
    of_lists = isinstance(TEXTS[kind], pa.ListType | pa.FixedSizeListType)
    captions = [["zero", None], ["one", "eins"], None, ["zero", "null"]] if of_lists else ["zero", "one", None, "zero"]
    file = parquet(here / "img.parquet", [0, 1, 2, 3], caption=pa.array(captions, TEXTS[kind]))
    assert str(pq.read_schema(file).field("caption").type) == str(TEXTS[kind]).replace("<item", "<element")
    encode("img.parquet")
    assert list(rows("store").values()) == ["zero", "one", None, "zero"]
    data = CaptionedSamples(
        [CaptionedDataset(kind="dataset", files=(str(file),))], image_size=32, resize="crop", seed=0
    )
    found = {data[epoch, 1]["caption"] for epoch in range(60)}
    assert found == ({"one", "eins"} if of_lists else {"one"})


def test_a_folder_of_parquet_files_says_how_they_are_named(here):
    (here / "data").mkdir()
    parquet(here / "data/train.parquet", [0])
    with pytest.raises(FileNotFoundError, match=r"no picture in data; name its Parquet files themselves, such as "):
        find_pictures(["data"])


def test_kind_pictures_says_how_a_parquet_file_is_trained_on(here):
    parquet(here / "img.parquet", [0], caption=["zero"])
    source = CaptionedPictures(kind="pictures", inputs=("img.parquet",))
    with pytest.raises(ValueError, match=r"img.parquet is read with kind = 'dataset'"):
        CaptionedSamples([source], image_size=32, resize="crop", seed=0)


@pytest.fixture
def imagefolder(here):
    """Pictures 0 to 4, of which metadata.csv lists some, one twice; 3 has a text of its own."""
    (here / "photos/deep").mkdir(parents=True)
    for number, name in enumerate(["0.png", "1.png", "deep/2.png", "3.png", "4.png"]):
        picture(number).save(here / "photos" / name)
    (here / "photos/3.txt").write_text("its own")
    lines = ["file_name,text", '0.png,"zero, first"', "0.png,zero again", "deep/2.png,two", "3.png,listed", "1.png,"]
    (here / "photos/metadata.csv").write_text("\n".join(lines) + "\n")
    return here / "photos"


CAPTIONS = [["zero, first", "zero again"], [], ["its own"], [], ["two"]]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("workers", [0, 2])
def test_captions_that_an_imagefolder_lists_are_encoded(imagefolder, kind, workers):
    if kind == "jsonl":
        (imagefolder / "metadata.csv").unlink()
        listed = [("0.png", ["zero, first", "zero again"]), ("deep/2.png", "two"), ("3.png", "listed")]
        lines = [json.dumps({"file_name": name, "caption": caption}) for name, caption in listed]
        (imagefolder / "metadata.jsonl").write_text("\n".join(lines))
    for inputs, name in ((["photos"], "photos"), (sorted(map(str, imagefolder.rglob("*.png"))), None)):
        found = list(entries(find_pictures(inputs)))
        wanted = CAPTIONS if name else [*CAPTIONS[:4], []]  # named itself, 2.png is not in the folder of the table
        assert [entry.captions() for entry in found] == wanted
    encode("photos", workers=workers)
    assert list(rows("store").values()).count("zero, first") == 1 and rows("store")["photos/deep/2.png"] == "two"


@pytest.mark.parametrize("inputs", [["photos/deep/5.png", "photos"], ["photos", "photos/deep/5.png"]])
def test_a_picture_that_is_named_itself_takes_no_captions_from_those_beside_it(imagefolder, inputs):
    picture(5).save(imagefolder / "deep/5.png")
    captions = {entry.path.name: entry.captions() for entry in entries(find_pictures(inputs))}
    assert captions["2.png"] == ["two"]


SEVERAL = "{} of {} several captions; a store keeps the first of each"


def test_several_captions_that_an_imagefolder_lists_are_counted_as_those_of_a_parquet_file(here, caplog):
    (here / "photos").mkdir()
    for number in range(4):
        picture(number).save(here / "photos" / f"{number}.png")
    (here / "photos/3.txt").write_text("its own, and the only one that is read")
    lines = [f"{number}.png,{text} {number}" for text in ("one", "two", "three", "four") for number in range(4)]
    (here / "photos/metadata.csv").write_text("\n".join(["file_name,text", *lines, "gone.png,a", "gone.png,b"]))
    parquet(here / "img.parquet", [0, 1, 2] * 2, caption=["one", "two"] * 3)
    encode("photos")
    encode("img.parquet", store="other")
    said = [message for message in caplog.messages if "several captions" in message]
    assert said == [SEVERAL.format("3 pictures", f"{name} have") for name in ("photos/metadata.csv", "img.parquet")]
    assert rows("store")["photos/0.png"] == "one 0"


def test_several_captions_are_said_once_by_all_ranks_and_not_where_each_has_one(imagefolder, caplog):
    for rank in (1, 0):
        encode("photos", rank=rank, world_size=2, workers=2)
    assert caplog.messages.count(SEVERAL.format("1 picture", "photos/metadata.csv has")) == 1
    (imagefolder / "metadata.csv").write_text("file_name,text\n0.png,zero\n1.png,one\n")
    caplog.clear()
    encode("photos", store="other")
    assert not any("several" in message for message in caplog.messages)


def test_a_table_that_names_none_of_the_pictures_is_named_in_the_log(imagefolder, caplog):
    (imagefolder / "metadata.csv").write_text("file_name,text\nimages/0.png,zero\nimages/1.png,one\n")
    encode("photos")
    line = "no row of photos/metadata.csv names one of its pictures; the first names photos/images/0.png"
    assert caplog.messages.count(line) == 1


def test_training_on_an_imagefolder_reads_the_same_captions(imagefolder):
    source = CaptionedPictures(kind="pictures", inputs=("photos",))
    data = CaptionedSamples([source], image_size=32, resize="crop", seed=0)
    drawn = [{data[epoch, index]["caption"] for epoch in range(30)} for index in range(len(data))]
    assert drawn == [{"zero, first", "zero again"}, {"its own"}, {"two"}]


def test_a_glob_takes_the_table_of_an_imagefolder_for_no_picture(imagefolder):
    names = [entry.path.name for entry in entries(find_pictures(["photos/*.*"]))]
    assert names == ["0.png", "1.png", "3.png", "4.png"]


def test_a_malformed_table_of_an_imagefolder_ends_with_its_line_before_anything_is_encoded(imagefolder):
    (imagefolder / "metadata.csv").write_text("file_name,text\n0.png,a red circle, a blue square\n")
    words = ["encode", "photos", "--out", "store", "--tokenizer", "mean-colour", "--size", "32"]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 1 and not (imagefolder.parent / "store").exists()
    assert "metadata.csv, line 2 has 3 fields, and the header 2" in result.output


def test_a_table_without_captions_or_of_something_else_is_none(imagefolder):
    for text in ("file_name,label\n0.png,3\n", "name,text\n0.png,zero\n", "file_name,text\n0.png,\n", ""):
        (imagefolder / "metadata.csv").write_text(text)
        assert [entry.captions() for entry in entries(find_pictures(["photos"]))] == [[], [], ["its own"], [], []]


def test_a_picture_that_is_only_a_path_is_read_where_it_lies(here):
    image = Image.new("RGB", (8, 8), "red")
    image.save(here / "red.png")
    cells = [{"bytes": None, "path": "red.png"}, {"bytes": None, "path": "gone.png"}]
    pq.write_table(pa.table({"image": pa.array(cells, STORED)}), here / "p.parquet")
    first, second = entries(find_pictures(["p.parquet"]))
    assert first.image().getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(PictureError, match=r"there is no file 'gone.png'"):
        second.image()
