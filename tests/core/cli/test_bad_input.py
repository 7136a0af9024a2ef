"""Unusual input of commands: each kind gives the right result, or one line that says what is wrong.

Kills, signals and a full disk are in test_encode.py; what each odd mode looks like once it is read, in test_data.py.
"""

import errno
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
from click.testing import CliRunner
from PIL import Image
from toklip_core.cli import cli
from toklip_core.config import RunConfig
from toklip_core.pictures import open_picture
from toklip_core.store import TokenStore

from tests.core.conftest import picture
from tests.support.encoding import encode_with
from tests.support.refusals import refused


def encode(*arguments, **environment):
    command = ["encode", "--tokenizer", "mean-colour", "--workers", "0", "--out", "store", *map(str, arguments)]
    return CliRunner().invoke(cli, command, env=environment)


@pytest.fixture
def here(toy, tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def png(width, height):
    """A PNG whose header claims a size that its data does not have."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    parts = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tar_of(name, data):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


JPEG = saved(picture(0), "JPEG")
LEVELS = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)

UNKNOWN = "no picture in a format that is known"

#: Kind -> name, bytes, and a part of the reason that is reported.
UNREADABLE = {
    "a text file": ("a.jpg", b"not a picture\n", UNKNOWN),
    "an empty file": ("a.jpg", b"", UNKNOWN),
    "a JPEG cut short": ("a.jpg", JPEG[: len(JPEG) - 40], "runcated"),
    "a PNG cut short": ("a.png", saved(picture(0), "PNG")[:-90], ""),
    "a decompression bomb": ("a.png", png(50_000, 50_000), "its pixels are more than the limit of 67108864; raise"),
    "a huger one": ("a.png", png(2**31 - 1, 2**31 - 1), ""),
    "HEIC, without a reader": ("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", UNKNOWN),
    "PostScript": ("a.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", UNKNOWN),
    "NaN": ("a.tiff", saved(Image.fromarray(LEVELS * np.float32("nan")), "TIFF"), "values from nan to nan; wanted 0"),
    "infinity": ("a.tiff", saved(Image.fromarray(LEVELS + np.float32("inf")), "TIFF"), "wanted 0 to 1"),
    "floats above 1": ("a.tiff", saved(Image.fromarray(LEVELS * 255), "TIFF"), "values from 0 to 255; wanted 0 to 1"),
    "a tar that is none": ("a.tar", b"tar?" * 300, "not a tar, or a damaged one"),
    "an empty file as tar": ("a.tar", b"", "not a tar, or a damaged one"),
    "a compressed tar in a folder": ("a.tar.gz", b"\x1f\x8b", "a compressed tar: no single picture can be reached"),
    "a tar cut short": ("a.tar", tar_of("b.jpg", JPEG)[:600], ""),
    "a tar that climbs out": ("a.tar", tar_of("../../b.jpg", JPEG), "the name '../../b.jpg' climbs out of the tar"),
    "a tar with a root": ("a.tar", tar_of("/b.jpg", JPEG), "the name '/b.jpg' climbs out of the tar"),
    "a tar with a text": ("a.tar", tar_of("b.jpg", b"text"), UNKNOWN),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", UNREADABLE)
def test_an_unreadable_picture_is_named_and_the_others_are_encoded(here, kind):
    name, data, reason = UNREADABLE[kind]
    Path("in").mkdir()
    Path("in", name).write_bytes(data)
    refused(encode("in"), "can be read; the first is in")
    assert not list(Path("store").glob("part-*"))

    picture(1).save("in/good.jpg")
    result = encode("in", "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 0 and report["pictures"] == 1 and report["unreadable"] >= 1
    store = TokenStore("store")
    assert list(store.keys()) == ["in/good.jpg"]
    assert all(row.source == f"in/{name}" for row in store.unreadable())
    assert any(reason in row.reason for row in store.unreadable())
    assert sorted(path.name for path in here.iterdir()) == [".store.unreadable", "in", "store"]  # nothing climbed out


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(picture(0), "JPEG", exif=exif)


#: Kind -> name and bytes of a picture that is odd, and good.
ODD = {
    "1 x 1": ("a.png", saved(Image.new("RGB", (1, 1)), "PNG")),
    "1 x 9000": ("a.png", saved(Image.new("RGB", (1, 9000)), "PNG")),
    "9000 x 1": ("a.png", saved(Image.new("RGB", (9000, 1)), "PNG")),
    "CMYK": ("a.jpg", saved(picture(0).convert("CMYK"), "JPEG")),
    "16 bit": ("a.png", saved(Image.fromarray((LEVELS * 65535).astype(np.uint16)), "PNG")),
    "float in [0, 1]": ("a.tiff", saved(Image.fromarray(LEVELS), "TIFF")),
    "one bit": ("a.png", saved(picture(0).convert("1"), "PNG")),
    "a palette": ("a.gif", saved(picture(0).convert("P"), "GIF")),
    "animated": ("a.gif", saved(picture(0), "GIF", save_all=True, append_images=[picture(1)])),
    "with alpha": ("a.webp", saved(picture(0).convert("RGBA"), "WEBP")),
    "turned by EXIF": ("a.jpg", rotated()),
    "broken EXIF": ("a.jpg", saved(picture(0), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")),
    "a name with other letters": ("c\u00e4t \U0001f408.jpg", JPEG),
    "a name that is not UTF-8": (os.fsdecode(b"c\xe4t.jpg"), JPEG),
    "a name like a pattern": ("[a]*?.jpg", JPEG),
    "a suffix in capitals": ("A.JPG", JPEG),
    "PNG called .jpg": ("a.jpg", saved(picture(0), "PNG")),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", ODD)
def test_an_odd_picture_is_encoded_and_decoded(here, kind):
    name, data = ODD[kind]
    Path("in").mkdir()
    Path("in", name).write_bytes(data)
    Path("in", name).with_suffix(".txt").write_bytes(b"caf\xe9")
    result = encode("in", "--json")
    assert result.exit_code == 0, result.output
    (row,) = TokenStore("store")
    assert row.ids.shape == (8, 8, 1) and row.caption == "caf\ufffd"
    assert CliRunner().invoke(cli, ["decode", "store", "--out", "out"]).exit_code == 0
    assert [open_picture(path).size for path in Path("out").rglob("*.png")] == [(32, 32)]


def two_of_one_key(here):
    for folder in ("in", "../in"):
        Path(folder).mkdir()
        picture(0).save(Path(folder, "a.jpg"))
    return ["in", "../in"]


def made_with(*arguments):
    """A picture that is in a store already, encoded with other settings."""

    def arrange(here):
        picture(0).save("a.jpg")
        assert encode("a.jpg", *arguments).exit_code == 0
        return ["a.jpg"]

    return arrange


def with_picture(*arguments):
    def arrange(here):
        picture(0).save("a.jpg")
        Path("file").write_text("1.0")
        Path("folder").mkdir()
        return ["a.jpg", *arguments]

    return arrange


def a_foreign_store(here):
    Path("store").mkdir()
    pd.DataFrame({"key": ["a"]}).to_parquet("store/part-00000-000001.parquet")
    return with_picture()(here)


def a_broken_part(here):
    Path("store").mkdir()
    Path("store/part-00000-000001.parquet").write_bytes(b"PAR1")
    return with_picture()(here)


def a_folder_inside_a_tar_name(here):
    Path("a.tar").mkdir()
    picture(0).save("a.tar/b.jpg")
    Path("deep").mkdir()
    Path("deep/a.tar").write_bytes(tar_of("b.jpg", JPEG))
    os.chdir("deep")
    return ["a.tar", "../a.tar"]


#: Kind -> what arranges it and returns the arguments, and a part of the one line that ends it.
REFUSED = {
    "no such file": (lambda here: ["nothing.jpg"], "there is no file or folder 'nothing.jpg'"),
    "a pattern that matches nothing": (lambda here: ["*.jpg"], "no file matches '*.jpg'"),
    "an address": (lambda here: ["s3://bucket/0.tar"], "0.tar'; only local files are read, so download them, or"),
    "braces": (lambda here: ["{00..09}.tar"], ".tar'; braces are not expanded in quotes: write a glob"),
    "an empty name": (lambda here: picture(0).save("a.jpg") or [""], "got an empty name of a picture or folder"),
    "an empty folder": (lambda here: ["."], "no picture in ."),
    "a compressed tar": (lambda here: Path("a.tar.gz").write_bytes(b"") or ["a.tar.gz"], "is compressed"),
    "an empty tar": (lambda here: tarfile.open("a.tar", "w").close() or ["a.tar"], "no picture in a.tar"),
    "two pictures of one key": (two_of_one_key, "two pictures have the key 'in/a.jpg': in/a.jpg and ../in/a.jpg"),
    "a folder that is called as a tar": (a_folder_inside_a_tar_name, "overlap"),
    "an unknown tokenizer": (with_picture("--tokenizer", "mean-color"), "Did you mean 'mean-colour'?"),
    "weights that are not there": (with_picture("--weights", "none.pt"), "none.pt"),
    "a folder as weights of a tokenizer that has a file": (with_picture("--weights", "folder"), "folder"),
    "a size that is not a multiple": (with_picture("--size", "30"), "got a picture of 30 x 30; its sides must be"),
    "a size below the smallest": (with_picture("--size", "3"), "its sides must be multiples of 4"),
    "an unknown device": (with_picture("--device", "abacus"), "got the device 'abacus'"),
    "a device without numbers": (with_picture("--device", "meta"), "got the device 'meta', which computes nothing"),
    "a device that is not there": (with_picture("--device", "cuda:99"), "got the device 'cuda:99'"),
    "a rank out of range": (with_picture("--rank", "2", "--world-size", "2"), "got rank 2 of 2"),
    "a store of another tokenizer": (made_with("--tokenizer", "mean-colour-slow"), "tokenizer.name 'mean-colour' (the"),
    "a store of another size": (made_with("--size", "64"), "image_size 32 (the store: 64)"),
    "a store of another resize": (made_with("--resize", "squash"), "resize 'crop' (the store: 'squash')"),
    "a store of another dtype": (made_with("--dtype", "bfloat16"), "dtype 'float32' (the store: 'bfloat16')"),
    "a target that is a file": (with_picture("--out", "file"), "file"),
    "a target below a file": (with_picture("--out", "file/store"), "file/store"),
    "a read-only target": (with_picture("--out", "/sys/toklip-store"), "/sys/toklip-store"),  # for root as well
    "a target with Parquet files of others": (a_foreign_store, "is not part of a token store"),
    "a target with a broken part": (a_broken_part, "is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_done_ends_with_one_line(here, kind):
    arrange, line = REFUSED[kind]
    refused(encode(*arrange(here)), line)


def test_other_weights_of_one_tokenizer_do_not_go_into_one_store(here):
    picture(0).save("a.jpg")
    Path("one").write_text("0.5")
    Path("other").write_text("0.7")
    assert encode("a.jpg", "--weights", "one").exit_code == 0
    refused(encode("a.jpg", "--weights", "other"), "tokenizer.checksum '")


def test_misspelt_options_are_usage_errors(here):
    picture(0).save("a.jpg")
    misspelt = (["--resize", "stretch"], ["--dtype", "float16"], ["--batch-size", "0"], ["--sise", "32"], ["--out", ""])
    for arguments in misspelt:
        assert encode("a.jpg", *arguments).exit_code == 2
    assert encode().exit_code == 2


def test_a_full_disk_is_one_line(here, monkeypatch):
    """As the kernel says it; test_encode.py has a real one."""

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pyarrow.parquet, "write_table", full)
    picture(0).save("a.jpg")
    refused(encode("a.jpg"), "no room to write in store (No space left on device); what is complete is kept")
    assert not list(Path().rglob("*part-*"))


def test_a_pipe_and_a_dangling_link_in_a_folder_are_named_and_not_waited_for(here):
    Path("in").mkdir()
    os.mkfifo("in/pipe.jpg")
    Path("in/link.jpg").symlink_to("nowhere.jpg")
    picture(0).save("in/good.jpg")
    assert json.loads(encode("in", "--json").stdout)["unreadable"] == 2
    reasons = {row.key: row.reason for row in TokenStore("store").unreadable()}
    named = encode("in/pipe.jpg").stderr  # the pipe itself: the same words
    assert named == f"Error: {reasons['in/pipe.jpg']}\n"
    assert reasons["in/pipe.jpg"].startswith("in/pipe.jpg is a pipe, not a file; ")
    assert reasons["in/link.jpg"] == "no file, or a link to none"


@pytest.fixture
def in_time():
    """A test that waits for a pipe fails, and does not wait for ever."""

    def late(number, frame):
        raise AssertionError("it waited for a pipe")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def bound(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


#: Kind -> what makes it.
SPECIAL = {
    "a pipe": os.mkfifo,
    "a socket": bound,
    "a device": lambda path: Path(path).symlink_to("/dev/zero"),
}
#: Every way to name a file that is read, PATH, whose name ends so.
READING = {
    "encode": (".png", ["encode", "PATH", "--out", "s", "--tokenizer", "mean-colour", "--workers", 0]),
    "encode a tar": (".tar", ["encode", "PATH", "--out", "s", "--tokenizer", "mean-colour", "--workers", 0]),
    "encode with weights": (
        ".safetensors", ["encode", "a.png", "--out", "s", "--tokenizer", "mean-colour", "--weights", "PATH"]
    ),
    "reconstruction": (".png", ["evaluate", "reconstruction", "PATH", "--tokenizer", "mean-colour"]),
    "search": (".png", ["search", "PATH", "a cat"]),
    "classify": (".png", ["classify", "PATH", "--labels", "cat,dog"]),
    "classify by a list": (".txt", ["classify", "a.png", "--labels-file", "PATH"]),
    "explain": (".png", ["explain", "PATH", "a cat", "--out", "e.png"]),
    "retrieval": (".csv", ["evaluate", "retrieval", "PATH"]),
    "retrieval by JSONL": (".jsonl", ["evaluate", "retrieval", "PATH"]),
    "train": (".toml", ["train", "encoder", "PATH", "--out", "run"]),
    "convert": (".pt", ["convert", "PATH", "m"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("command", READING)
def test_what_is_no_file_is_refused_and_not_waited_for(here, in_time, command, kind):
    suffix, arguments = READING[command]
    path = f"special{suffix}"
    SPECIAL[kind](path)
    picture(0).save("a.png")
    result = CliRunner().invoke(cli, [str(path if word == "PATH" else word) for word in arguments])
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in (1, 2) and path in result.stderr, result.stderr
    assert f"is {kind}, not a file; write what it gives into a file" in result.stderr


def test_a_pipe_called_tar_in_a_folder_is_named_and_not_waited_for(here, in_time):
    Path("in").mkdir()
    os.mkfifo("in/pipe.tar")
    picture(0).save("in/good.jpg")
    assert json.loads(encode("in", "--json").stdout)["unreadable"] == 1
    (row,) = TokenStore("store").unreadable()
    assert "in/pipe.tar is a pipe, not a file" in row.reason


def test_a_million_workers_are_refused_before_any_is_started(here):
    picture(0).save("a.jpg")
    result = encode("a.jpg", "--workers", 10**6)
    assert result.exit_code == 2 and "'--workers': 1000000 is not in the range 0<=x<=256" in result.stderr
    with pytest.raises(ValueError, match="got workers = 1000000; wanted 0 to 256"):
        encode_with(["a.jpg"], "store", tokenizer="mean-colour", workers=10**6)
    with pytest.raises(ValueError, match="less than or equal to 256"):
        RunConfig(steps=1, batch_size=1, learning_rate=1, workers=10**6)


def test_a_key_is_the_path_as_typed_and_help_says_what_follows(here):
    for seed, day in enumerate(("day1", "day2")):
        Path(here, day, "photos").mkdir(parents=True)
        os.chdir(here / day)
        picture(seed).save("photos/1.jpg")
        report = json.loads(encode("photos/1.jpg", "--out", "../store", "--json").stdout)
        assert (report["pictures"], report["skipped"]) == (1 - seed, seed)
    os.chdir(here)
    assert json.loads(encode("day2/photos/1.jpg", "--json").stdout)["pictures"] == 1
    said = " ".join(CliRunner().invoke(cli, ["encode", "--help"]).stdout.split())
    assert "A picture's key is its path as typed" in said and "whose key is already in the store is skipped" in said


DECODE_REFUSED = {
    "no store": (["nothing"], "no token store at nothing"),
    "a folder without parts": (["."], "no token store at ."),
    "other weights": (["store", "--weights", "other"], "name that tokenizer and its weights"),
    "a target that is a file": (["store", "--out", "other"], "other"),
    "a read-only target": (["store", "--out", "/sys/out"], "/sys/out"),
    "an unknown device": (["store", "--device", "abacus"], "got the device 'abacus'"),
}


@pytest.mark.parametrize("kind", DECODE_REFUSED)
def test_what_cannot_be_decoded_ends_with_one_line(here, kind):
    picture(0).save("a.jpg")
    Path("other").write_text("0.5")
    assert encode("a.jpg").exit_code == 0
    arguments, line = DECODE_REFUSED[kind]
    refused(CliRunner().invoke(cli, ["decode", "--out", "out", *arguments]), line)


@pytest.mark.slow
def test_a_store_whose_tokenizer_is_not_installed_says_so(here, toy):
    picture(0).save("a.jpg")
    assert encode("a.jpg").exit_code == 0
    command = [sys.executable, "-m", "toklip_core", "decode", "store", "--out", "out"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    begins = "Error: the token store store: no VQ tokenizer is named 'mean-colour'."
    assert done.returncode == 1 and done.stderr.startswith(begins)
    assert done.stderr.count("\n") == 1
