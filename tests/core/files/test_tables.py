"""No row of a table is merged, cut or lost; the rows of one picture are one picture."""

import json
import logging
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toklip_core.captioned import CaptionedDataset, CaptionedSamples, CaptionedTable
from toklip_core.evaluation import karpathy_pairs, table_pairs
from toklip_core.files import captions_by_picture, captions_in, table_rows
from toklip_core.pictures import PICTURE_SUFFIXES

from tests.core.captioned.test_samples import bytes_of, rows_of_pictures  # noqa: F401  (a fixture)
from tests.core.conftest import picture

FAULTS = Path(__file__).parents[2] / "faults"


def rows(table):
    return [(line, row["image"], row["caption"]) for line, row in table_rows(table, ("image", "caption"))]


def samples(source):
    return CaptionedSamples([source], image_size=32, resize="crop", seed=3)


def table(path, text):
    path.write_text(text, encoding="utf-8", newline="")
    return path


def test_in_a_tsv_a_quote_is_a_character_and_a_line_is_a_row():
    assert rows(FAULTS / "open-quotes.tsv") == [
        (2, "000000.png", "a red circle"),
        (3, "000001.png", '"big" red dog and a cat'),
        (4, "000002.png", '"The Wall, a poster'),
        (5, "000003.png", "a blue square"),
        (6, "000004.png", '12" vinyl record'),
        (7, "000005.png", "a green cross"),
        (8, "000006.png", "None"),
        (9, "000007.png", "NA"),
    ]


def test_a_field_of_a_tsv_that_is_quoted_as_a_whole_loses_its_quotes(tmp_path):
    path = table(tmp_path / "t.tsv", '"image"\t"caption"\n"a.png"\t"a ""big"" dog"\nb.png\t"one" and "two"\n')
    assert rows(path) == [(2, "a.png", 'a "big" dog'), (3, "b.png", '"one" and "two"')]


def test_in_a_csv_a_quoted_field_may_have_commas_quotes_and_lines(tmp_path):
    path = table(tmp_path / "t.csv", 'image,caption\r\n\r\na.png,"a ""big"" dog,\nand a cat"\r\nb.png,12" vinyl\r\n')
    assert rows(path) == [(3, "a.png", 'a "big" dog,\nand a cat'), (5, "b.png", '12" vinyl')]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", 'image,caption\na.png,one\nb.png,"The Wall\nc.png,three\n', "lines 3 to 4: a quote is opened and n"),
        ("t.csv", 'image,caption\na.png,"big" dog\nb.png,two\n', "line 2: ',' expected after '\"'; put a field with a"),
        ("t.csv", 'image,caption\na.png,"The Wall\nb.png,two\nc.png,three"\n', "line 2: .* before the row 'b.png,two'"),
        ("t.csv", 'caption,image\n"The Wall,a.png\ntwo,b.png\n12",c.png\n', "line 2: .* in the row 'The Wall,a.png'"),
        ("t.csv", 'caption,image\n"open,a.jpg\ntwo",b.jpg\nthree,c.jpg\n', "line 2: .* in the row 'open,a.jpg'"),
        ("t.csv", 'caption,image\n"open,a.jpg\n",b.jpg\n', "line 2: .* in the row 'open,a.jpg'"),
        ("t.csv", 'caption,image\n"open,a\ntwo",b\nthree,c\n', "line 2: .* in the row 'open,a'"),
        ("t.csv", 'image,caption\na,"open\nb,two"\nc,three\n', "line 2: .* before the row 'b,two'"),
        ("t.csv", 'image,caption\na,"The Wall, a poster\nb,two"\n', "line 2: .* before the row 'b,two'"),
        ("t.csv", 'image,caption\na.jpg?x=1,"open\nb.jpg?x=2,two"\n', r"line 2: .* before the row 'b.jpg\?x=2,two'"),
        ("t.csv", 'image,caption,by\na.jpg,"open,x\nb.jpg,two",y\n', "line 2: .* before the row 'b.jpg,two'"),
        ("t.csv", 'by,image,caption\nx,a.jpg,"open\n""y, z"",b.jpg,two"\n', 'line 2: .* before the row \'"y, z",b.jpg'),
        ("t.csv", 'by,image,caption\nx,a.jpg,"open\n"",b.jpg,two"\n', "line 2: .* before the row '\",b.jpg,two'"),
        ("t.csv", 'image,,,caption\na.jpg,,,"open\nb.jpg,,,two"\n', "line 2: .* before the row 'b.jpg,,,two'"),
        ("t.csv", "image,caption\na.png,one\nb.png\n", "line 3 has 1 fields, and the header 2; put a field with a co"),
        ("t.csv", "image,caption\na.png,one,\n", "line 2 has 3 fields, and the header 2"),
        ("t.tsv", 'image\tcaption\na.png\t"one\ntwo"\n', "line 3 has 1 fields, and the header 2; write a row into o"),
        ("t.tsv", "image\tcaption\na.png\tone\ttwo\n", "line 2 has 3 fields, and the header 2; write a row into one l"),
        ("t.csv", "image,caption,caption\na.png,one,two\n", "t.csv has the column 'caption' twice"),
        ("t.csv", f"image,caption\na.png,{'x' * 200_000}\n", "line 2: field larger than field limit"),
    ],
)
def test_a_row_that_is_not_whole_is_named(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message) as raised:
        captions_by_picture(table(tmp_path / name, text), tmp_path, image="image", caption="caption",
                            suffixes=PICTURE_SUFFIXES)
    assert len(str(raised.value)) - len(str(tmp_path)) < 240


@pytest.mark.parametrize(
    ("header", "row", "caption"),
    [
        ("image,caption", 'a.jpg,"A dog,\nbrown,running, fast"', "A dog,\nbrown,running, fast"),
        ("image,caption", 'a.jpg,"A dog\nbeside b.jpg"', "A dog\nbeside b.jpg"),
        ("image,caption", 'a,"A dog, and\nbrown, running"', "A dog, and\nbrown, running"),
        ("image,caption", 'a,"A dog\nbrown,running, fast"', "A dog\nbrown,running, fast"),
        ("caption,image", '"A dog, brown\nrunning, fast",a', "A dog, brown\nrunning, fast"),
        ("caption,image", '"A dog,brown\nrunning",a.jpg', "A dog,brown\nrunning"),
        ("caption,image,by", '"A dog, brown\nand a cat\n",a.jpg,x', "A dog, brown\nand a cat"),
    ],
)
def test_a_caption_of_several_lines_with_commas_is_no_row(tmp_path, header, row, caption):
    """It names no picture, or, where names have no known suffix, has a space at a comma or other fields than a row."""
    path = table(tmp_path / "t.csv", f"{header}\n{row}\n")
    found = captions_by_picture(path, tmp_path, image="image", caption="caption", suffixes=PICTURE_SUFFIXES)
    assert list(found.values()) == [[caption]]


@pytest.mark.parametrize(("name", "comma"), [("t.csv", ","), ("t.tsv", "\t")])
def test_a_row_without_anything_between_its_commas_is_a_blank_line(tmp_path, name, comma):
    text = "image,caption\n,\na.png,one\n,\n , \n,,\n".replace(",", comma)
    assert rows(table(tmp_path / name, text)) == [(3, "a.png", "one")]


@pytest.mark.parametrize("header", [",".join(f"column{number}" for number in range(200)), "x" * 5000 + ",caption"])
def test_a_table_of_long_or_many_columns_is_named_in_one_short_line(tmp_path, header):
    with pytest.raises(ValueError, match=r"t.csv has no column 'image'; its columns: ") as raised:
        rows(table(tmp_path / "t.csv", header + "\n" + "," * header.count(",") + "1\n"))
    assert len(str(raised.value)) - len(str(tmp_path)) < 240


def test_a_path_that_is_no_text_is_named_in_one_short_line(tmp_path):
    path = table(tmp_path / "t.jsonl", json.dumps({"image": {"path": "x" * 5000}, "caption": "one"}) + "\n")
    with pytest.raises(ValueError, match=r"t.jsonl, line 1: 'image' is \{'path': .*; it must be a path") as raised:
        captions_by_picture(path, tmp_path, image="image", caption="caption")
    assert len(str(raised.value)) - len(str(tmp_path)) < 240


def test_a_comma_outside_of_quotes_cuts_no_caption(tmp_path):
    shutil.copy(FAULTS / "extra-field.csv", tmp_path)
    picture(0).save(tmp_path / "000000.png")
    with pytest.raises(ValueError, match=r"extra-field.csv, line 2 has 3 fields, and the header 2; put a field with a"):
        samples(CaptionedTable(kind="table", table=tmp_path / "extra-field.csv"))
    with pytest.raises(ValueError, match=r"extra-field.csv, line 2 has 3 fields"):
        table_pairs(tmp_path / "extra-field.csv", tmp_path, captions="caption")


@pytest.fixture
def one_row_per_caption(tmp_path):
    shutil.copy(FAULTS / "one-row-per-caption.csv", tmp_path)
    for number in range(2):
        picture(number).save(tmp_path / f"{number:06d}.png")
    return tmp_path / "one-row-per-caption.csv"


def test_rows_that_name_one_picture_are_one_picture_to_train_on(one_row_per_caption):
    data = samples(CaptionedTable(kind="table", table=one_row_per_caption))
    assert len(data) == 2  # so no batch has two captions of a picture as each other's negatives
    drawn = [{data[epoch, index]["caption"] for epoch in range(60)} for index in range(2)]
    assert [len(captions) for captions in drawn] == [4, 4] and not drawn[0] & drawn[1]
    assert len(data.distinct_captions()) == 8


def test_one_picture_spelt_in_two_ways_is_one(tmp_path):
    picture(0).save(tmp_path / "a.png")
    names = ["a.png", "./a.png", "deep/../a.png", str(tmp_path / "a.png")]
    path = table(tmp_path / "t.csv", "image,caption\n" + "".join(f"{name},{i}\n" for i, name in enumerate(names)))
    (pair,) = table_pairs(path, tmp_path, captions="caption")
    assert list(pair.captions) == ["0", "1", "2", "3"]


def dataset(path, columns, image=None):
    image = image or pa.struct({"bytes": pa.binary(), "path": pa.string()})
    cells = {"image": pa.array(columns["image"], image), "caption": columns["caption"]}
    pq.write_table(pa.table(cells), path, row_group_size=2)
    return CaptionedDataset(kind="dataset", files=(str(path),))


@pytest.mark.parametrize("plain", [False, True], ids=["as datasets stores it", "bytes"])
def test_rows_of_a_data_set_that_hold_one_picture_are_one_picture(tmp_path, rows_of_pictures, plain):  # noqa: F811
    """One of two pictures of one size that differ in their last byte alone, and one without a caption, too."""
    first, second = bytes_of(picture(0), "BMP"), bytes_of(picture(1), "BMP")
    other = first[:-1] + bytes([first[-1] ^ 1])
    data = [first, second, first, other, first, None, None]
    images = data if plain else [{"bytes": each, "path": "same.bmp" if each else None} for each in data]
    captions = ["one", "two", "three", "four", None, "five", "six"]
    found = samples(dataset(tmp_path / "d.parquet", {"image": images, "caption": captions}, plain and pa.binary()))
    assert len(found) == 5
    drawn = [{found[epoch, index]["caption"] for epoch in range(40)} for index in range(3)]
    assert drawn == [{"one", "three"}, {"two"}, {"four"}]


def test_pictures_of_a_data_set_that_are_files_are_grouped_by_their_paths(tmp_path, rows_of_pictures):  # noqa: F811
    for number in range(2):
        picture(number).save(tmp_path / f"{number}.png")
    images = [{"bytes": None, "path": str(tmp_path / f"{number}.png")} for number in (0, 1, 0)]
    found = samples(dataset(tmp_path / "d.parquet", {"image": images, "caption": ["one", "two", "three"]}))
    assert [{found[epoch, i]["caption"] for epoch in range(20)} for i in range(2)] == [{"one", "three"}, {"two"}]


def test_nulls_in_a_list_of_captions_are_skipped_counted_and_named_before_the_first_step(
    tmp_path, rows_of_pictures, caplog  # noqa: F811
):
    picture(0).save(tmp_path / "a.png")
    lines = [{"image": "a.png", "caption": ["one", None, "two", float("nan")]}, {"image": "a.png", "caption": [None]}]
    table(tmp_path / "t.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    found = samples(CaptionedTable(kind="table", table=tmp_path / "t.jsonl"))
    assert {found[epoch, 0]["caption"] for epoch in range(20)} == {"one", "two"}
    assert "3 captions are null and left out; the first: " in caplog.text and "t.jsonl, line 1" in caplog.text
    assert "1 of 2 rows of" in caplog.text
    caplog.clear()
    images = [{"bytes": bytes_of(picture(number)), "path": None} for number in range(3)]
    captions = [["one"], ["two", None], [None]]
    found = samples(dataset(tmp_path / "d.parquet", {"image": images, "caption": captions}))
    assert "2 captions are null and left out; the first: " in caplog.text and "d.parquet, row 1" in caplog.text
    assert [found[0, index]["caption"] for index in range(len(found))] == ["one", "two"]


def test_captions_of_a_data_set_that_are_no_texts_are_refused_before_the_first_step(tmp_path, rows_of_pictures):  # noqa: F811
    images = [{"bytes": bytes_of(picture(0)), "path": None}]
    for captions, kind in ([[1]], "list<"), ([3], "int64"), ([{"raw": "one"}], "struct<"):
        with pytest.raises(ValueError, match=rf"d.parquet: the column 'caption' is {kind}.*; it must be a text, or a"):
            samples(dataset(tmp_path / "d.parquet", {"image": images, "caption": captions}))


def test_what_is_no_caption_is_named():
    with pytest.raises(ValueError, match=r"^here is a list with a int; it must be a text, or a list of texts"):
        captions_in(["one", 0], "here")
    with pytest.raises(ValueError, match=r"^here is a bool; it must be a text"):
        captions_in(False, "here")


def test_a_karpathy_file_may_have_nulls_and_a_picture_twice(tmp_path, caplog):
    picture(0).save(tmp_path / "a.png")
    images = [
        {"filename": "a.png", "split": "test", "sentences": [{"raw": text} for text in texts]}
        for texts in (["one", None], ["two"], [None])
    ]
    (tmp_path / "k.json").write_text(json.dumps({"images": images}))
    with caplog.at_level(logging.WARNING):
        (pair,) = karpathy_pairs(tmp_path / "k.json", "test", tmp_path)
    assert list(pair.captions) == ["one", "two"]
    assert "2 captions are null and left out" in caplog.text
