"""Members of a tar that belong together stay together, and a damaged tar does not affect others."""

import codecs
import io
import os
import random
import shutil
import tarfile
from pathlib import Path

import pytest
from toklip_core.captioned import CaptionedPictures, CaptionedSamples
from toklip_core.pictures import PICTURE_SUFFIXES, PictureError, entries, find_pictures, tar_pictures
from toklip_core.store import TokenStore, read_report

from tests.core.pictures.test_find import jpeg, png, tar
from tests.support.encoding import encode_with

FAULTS = Path(__file__).parents[2] / "faults"


def captions(path):
    """Name in the tar -> caption, or why the picture cannot be read."""
    return {name: member.problem or member.caption(path) for name, member in tar_pictures(path, PICTURE_SUFFIXES)}


def test_a_picture_has_the_caption_of_its_own_occurrence():
    found = captions(FAULTS / "duplicate-member.tar")
    assert found == {"1.jpg": "first", "1.jpg#2": "a second member named '1.jpg'"}


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["1.txt", "1.jpg", "1.txt", "1.jpg"], {"1.jpg": "0", "1.jpg#2": "a second member named '1.jpg'"}),
        (["1.jpg", "1.jpg", "1.txt"], {"1.jpg": None, "1.jpg#2": "a second member named '1.jpg'"}),
        (["1.jpg", "1.json", "1.jpg", "1.txt"], {"1.jpg": None, "1.jpg#2": "a second member named '1.jpg'"}),
        (["1.jpg", "1.txt", "1.txt"], {"1.jpg": "1"}),
        (["1.jpg", "1.txt", "1.txt", "1.png"], {"1.jpg": "1", "1.png": "belongs to a second member named '1.txt'"}),
        (["1.jpg", "2.jpg", "1.txt", "2.txt"], {"1.jpg": "2", "2.jpg": "3"}),
        (["1.jpg", "1.png", "1.txt"], {"1.jpg": "2", "1.png": "2"}),
        (["1.JPG", "1.TXT"], {"1.JPG": "1"}),
        (["1.jpg", "1.txt", "1.jpg"], {"1.jpg": "1", "1.jpg#2": "a second member named '1.jpg'"}),
        (["1.jpg", "1.txt", "1.png", "1.txt"], {"1.jpg": "1", "1.png": "belongs to a second member named '1.txt'"}),
        (
            ["1.jpg", "1.txt", "2.jpg", "2.txt", "1.png", "1.txt"],
            {"1.jpg": "1", "2.jpg": "3", "1.png": "belongs to a second member named '1.txt'"},
        ),
        (
            ["1.jpg", "1.txt", "1.png", "2.jpg", "2.txt", "1.txt"],
            {"1.jpg": "1", "1.png": "1", "2.jpg": "4"},
        ),
        (["1.JPG", "1.txt", "1.jpg", "1.TXT"], {"1.JPG": "1", "1.jpg": "belongs to a second member named '1.txt'"}),
        (["1.cls", "1.jpg", "2.jpg", "2.txt", "1.cls", "1.txt"], {"1.jpg": None, "2.jpg": "3"}),
        (
            ["1.jpg", "2.jpg", "2.txt", "1.txt", "1.jpg"],
            {
                "1.jpg": "'1.txt' may belong to a second member named '1.jpg'", "2.jpg": "2",
                "1.jpg#2": "a second member named '1.jpg'",
            },
        ),
        (
            ["1.jpg", "2.jpg", "1.txt", "2.txt", "1.jpg", "2.jpg", "1.txt", "2.txt"],
            {
                "1.jpg": "2", "2.jpg": "3", "1.jpg#2": "a second member named '1.jpg'",
                "2.jpg#2": "a second member named '2.jpg'",
            },
        ),
        (
            ["1.01.jpg", "1.01.txt", "1.01.jpg", "1.01.txt", "1.02.jpg", "1.02.txt", "1.03.jpg", "1.03.txt"],
            {"1.01.jpg": "1", "1.01.jpg#2": "a second member named '1.01.jpg'", "1.02.jpg": "5", "1.03.jpg": "7"},
        ),
        (
            ["1.01.jpg", "1.01.jpg", "1.02.jpg"],
            {"1.01.jpg": None, "1.01.jpg#2": "a second member named '1.01.jpg'", "1.02.jpg": None},
        ),
        (
            ["1.in.jpg", "1.txt", "1.out.jpg", "1.in.jpg", "1.txt", "1.more.jpg"],
            {
                "1.in.jpg": "1", "1.out.jpg": "belongs to a second member named '1.in.jpg'",
                "1.in.jpg#2": "a second member named '1.in.jpg'",
                "1.more.jpg": "belongs to a second member named '1.in.jpg'",
            },
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_occurrences_of_a_key_are_not_mixed(tmp_path, names, wanted):
    """Each text is its own place in the tar."""
    members = [(name, str(place).encode() if "t" in name.lower() else b"{}") for place, name in enumerate(names)]
    assert captions(tar(tmp_path / "x.tar", members)) == wanted


def test_the_key_of_a_member_is_what_stands_before_its_first_dot(tmp_path, monkeypatch):
    """WebDataset's rule; a text of the picture's own whole name goes first: a.v1.jpg and a.v2.jpg have theirs."""
    members = [
        ("000.input.jpg", jpeg(0)), ("000.txt", b"zero"), ("000.output.png", png()),
        ("d.e/001.input.jpg", jpeg(1)), ("d.e/001.json", b'{"caption": "one"}'),
        ("002.v1.jpg", jpeg(2)), ("002.v1.txt", b"two, one"), ("002.v2.jpg", jpeg(3)), ("002.v2.txt", b"two, two"),
        ("003.v1.jpg", jpeg(4)), ("003.v2.txt", b"of another picture"),
    ]  # fmt: skip
    path = tar(tmp_path / "x.tar", members)
    assert captions(path) == {
        "000.input.jpg": "zero", "000.output.png": "zero", "d.e/001.input.jpg": "one", "002.v1.jpg": "two, one",
        "002.v2.jpg": "two, two", "003.v1.jpg": None,
    }  # fmt: skip
    monkeypatch.chdir(tmp_path)
    keys = [entry.key for entry in entries(find_pictures(["x.tar"]))]
    assert keys == [f"x.tar/{name}" for name, _ in members if not name.endswith(("txt", "json"))]  # no two alike


def test_in_a_folder_the_key_ends_at_the_last_dot(tmp_path):
    (tmp_path / "a.v1.jpg").write_bytes(jpeg())
    (tmp_path / "a.txt").write_text("of another picture")
    (tmp_path / "b.v1.jpg").write_bytes(jpeg())
    (tmp_path / "b.v1.txt").write_text("b")
    assert [entry.caption() for entry in entries(find_pictures([tmp_path]))] == [None, "b"]


@pytest.mark.parametrize(
    "data",
    [
        "a r\u00f6d circle \U0001f534".encode("utf-8-sig"),
        "a r\u00f6d circle \U0001f534".encode("utf-16"),
        "a r\u00f6d circle \U0001f534".encode("utf-32"),
        codecs.BOM_UTF16_BE + "a r\u00f6d circle \U0001f534".encode("utf-16-be"),
        codecs.BOM_UTF32_BE + "a r\u00f6d circle \U0001f534".encode("utf-32-be"),
    ],
)
def test_a_text_beside_a_picture_is_read_in_the_encoding_of_its_byte_order_mark(toy, tmp_path, data):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a.jpg").write_bytes(jpeg(0))
    (tmp_path / "folder/a.txt").write_bytes(data)
    tar(tmp_path / "b.tar", [("b.jpg", jpeg(1)), ("b.txt", data)])
    encode_with([tmp_path / "folder", tmp_path / "b.tar"], tmp_path / "s", tokenizer="mean-colour")
    assert [row.caption for row in TokenStore(tmp_path / "s")] == ["a r\u00f6d circle \U0001f534"] * 2


def malformed(path, header):
    """A tar of one picture, then a header with a right checksum and wrong fields."""
    tar(path, [("good.png", png()), ("good.txt", b"a caption")])
    with tarfile.open(path) as file:
        end = max(info.offset_data + 512 for info in file)
    path.write_bytes(path.read_bytes()[:end] + header + bytes(1024))
    return path


def pax(records):
    """An extended header, and the member that it is about."""
    info = tarfile.TarInfo("PaxHeaders/x")
    info.type, info.size = tarfile.XHDTYPE, len(records)
    body = records.ljust(512, b"\0")
    return info.tobuf(tarfile.USTAR_FORMAT) + body + tarfile.TarInfo("x.png").tobuf(tarfile.USTAR_FORMAT)


HEADERS = {
    "no number": pax(b"99 path=x\n"),
    "a size that is none": pax(b"12 size=abc\n"),
    "a size below nothing": pax(b"11 size=-5\n"),
    "a sparse map that is none": pax(b"22 GNU.sparse.major=x\n30 GNU.sparse.map=1,a,b,c,d,\n"),
    "no record": pax(b"nonsense"),
    "a length of nothing": pax(b"0 path=x\n"),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_malformed_header_is_reported_and_the_other_tars_are_read(toy, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    malformed(Path("0.tar"), HEADERS[kind])
    tar(Path("1.tar"), [("fine.png", png()), ("fine.txt", b"another")])
    report = encode_with(["0.tar", "1.tar"], "store", tokenizer="mean-colour", image_size=32)
    assert report.pictures >= 2
    assert [row.caption for row in TokenStore("store") if row.caption] == ["a caption", "another"]
    for key, row in read_report(Path("store")).items():
        assert key.startswith("0.tar") and len(row.reason) < 240 and "\n" not in row.reason
    source = CaptionedPictures(kind="pictures", inputs=("0.tar", "1.tar"))
    data = CaptionedSamples([source], image_size=32, resize="crop", seed=0)
    assert {data[0, index]["caption"] for index in range(len(data))} == {"a caption", "another"}


def test_whatever_is_wrong_in_a_header_no_tar_raises_or_hangs(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as file:
        for name in ("größe.png", "b.png"):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 700, 1.5
            file.addfile(info, io.BytesIO(bytes(700)))
    whole, path = buffer.getvalue(), tmp_path / "x.tar"
    for seed in range(400):
        draw, data = random.Random(seed), bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(3072)] = draw.randrange(256)
        for start in range(0, 3072, 512):  # with right checksums, so that the fields are believed
            if data[start + 257 : start + 262] == b"ustar":
                data[start + 148 : start + 156] = b" " * 8
                data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
        path.write_bytes(data)
        for _, member in tar_pictures(path, PICTURE_SUFFIXES):
            assert isinstance(member.problem, str)


def test_a_tar_that_is_a_pipe_is_named_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.tar")
    shutil.copy(FAULTS / "duplicate-member.tar", tmp_path / "y.tar")
    first, *rest = entries(find_pictures([tmp_path]))
    with pytest.raises(PictureError, match=r"not a tar, or a damaged one: .* is a pipe, not a file"):
        first.image()
    assert len(rest) == 2
