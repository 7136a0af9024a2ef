"""`toklip decode` writes only inside its folder, although keys come from any files, tars and stores."""

import errno
import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from toklip_core.cli import cli
from toklip_core.pictures import open_picture
from toklip_core.store import PartWriter, TokenStore, decode_store, picture_path, reader
from toklip_core.store.part_reader import read_group

from tests.core.conftest import picture
from tests.support.encoding import encode_with
from tests.support.processes import locked_elsewhere
from tests.support.small_models import small_toklip


@pytest.fixture
def store_of(toy, tmp_path):
    """A function: a store that has a picture of each key, as another program may have written it."""

    def make(*keys):
        picture(0).save(tmp_path / "a.jpg")
        encode_with([tmp_path / "a.jpg"], tmp_path / "good", tokenizer="mean-colour")
        good = TokenStore(tmp_path / "good")
        writer = PartWriter(tmp_path / "store", good.info)
        for key in keys:
            writer.add([key], good[0].ids[None], [None])
        writer.flush()
        return tmp_path / "store"

    return make


def below(folder):
    """The files of a folder, but for the one that a decode locks."""
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return [file for file in files if file != ".decode.lock"]


#: Keys that no file can have as its name, or not everywhere.
NAMES = [
    "x" * 300, "x" * 299 + "y", "\u00e4" * 200, "folder/" + "x" * 252, "x" * 256 + "/a", "a\0b", "a\nb", "CON",
    "nul.jpg/a", "com1.jpg", "a./b", "a /b", "C:/b", "C:b", "a\\b", "..\\b", "a//b", "./c", "a/", "a/.",
    "/a", "//a", "/", "",
]  # fmt: skip


def test_a_folder_takes_one_decode_at_a_time(store_of, tmp_path):
    store, out = store_of("a", "b"), tmp_path / "out"
    out.mkdir()
    with locked_elsewhere(out / ".decode.lock"):
        with pytest.raises(OSError, match=r"another decode writes into .*out; wait for its end, or name") as raised:
            decode_store(store, out)
        assert "\n" not in str(raised.value) and below(out) == []
    assert decode_store(store, out).pictures == 2 and below(out) == ["a.png", "b.png"]


def test_every_key_has_a_place_of_its_own_that_every_file_system_takes(tmp_path):
    paths = [picture_path(tmp_path, key) for key in [*NAMES, "a", "b", "a/b", "c", "CON~1"]]
    assert len(set(paths)) == len(paths)
    for path in paths:
        for name in path.relative_to(tmp_path).parts:
            assert len(os.fsencode(name)) <= 255 and "\\" not in name and "\0" not in name and ":" not in name[:2]
            assert not name.endswith((".", " ")) and name.split(".")[0].lower() not in ("con", "nul", "com1")


@pytest.mark.parametrize("key", ["photos/a.jpg", "a" * 251, "x.tar/1.jpg", "\u00e4\U0001f408", "a#2", ".a", "console"])
def test_an_ordinary_key_is_the_name_of_its_picture(tmp_path, key):
    assert picture_path(tmp_path, key) == tmp_path / f"{key}.png"


def test_a_name_as_long_as_a_file_can_have_is_encoded_and_decoded(toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for name in ("a.png", "b" * 249 + ".png", "c.png"):
        picture(0).save(Path("in", name), "PNG")
    encode_with(["in"], "s", tokenizer="mean-colour")
    for written in (3, 0):  # the second call finds them all
        result = CliRunner().invoke(cli, ["decode", "s", "--out", "out", "--json"])
        report = json.loads(result.stdout)
        assert result.exit_code == 0
        assert (report["pictures"], report["skipped"], report["left_out"]) == (written, 3 - written, 0)
        assert report["renamed"] == 1 and report["first_renamed"].startswith("'in/bbb")
    assert len(below(tmp_path / "out")) == 3


def test_keys_that_are_no_names_cost_no_other_picture(store_of, tmp_path):
    report = decode_store(store_of("a", *NAMES, "z"), tmp_path / "out")
    assert (report.pictures, report.renamed, report.left_out) == (len(NAMES) + 2, len(NAMES), 0)
    assert f"{len(NAMES)} have another name than their key, which no file can have; the first: " in report.as_text()
    for path in (tmp_path / "out").rglob("*.png"):
        assert open_picture(path).size == (32, 32)


def test_keys_that_lead_out_are_named_and_cost_no_other_picture(store_of, tmp_path):
    out, outside = tmp_path / "out", tmp_path / "outside"
    for folder in (out, outside):
        folder.mkdir()
    (out / "link").symlink_to(outside)
    evil = ["../up", "..", "a/../../up", "/../up", "link/in", f"{tmp_path}/../outside/x"]
    report = decode_store(store_of("a", *evil, "z"), out)
    assert (report.pictures, report.left_out) == (2, len(evil))
    assert report.first_left_out.startswith("'../up': the key leads out of the folder")
    assert f"{len(evil)} could not be written; the first: '../up'" in report.as_text()
    assert below(out) == ["a.png", "z.png"] and below(outside) == []


def test_absolute_paths_as_keys_lead_below_the_folder(store_of, tmp_path):
    out, outside = tmp_path / "out", tmp_path / "outside"
    report = decode_store(store_of(f"{outside}/a.jpg", "b"), out)
    assert (report.pictures, report.renamed, report.left_out) == (2, 1, 0)
    assert not outside.exists() and len(below(out)) == 2
    assert any(name.endswith(f"{outside}/a.jpg.png") for name in below(out))


def test_pictures_are_not_written_into_the_store(store_of, tmp_path):
    store = store_of("a")
    for out in (store, tmp_path / "elsewhere/../store"):
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=r"as the store and as the folder of pictures; name another folder"):
            decode_store(store, out)
    assert not [*store.rglob("*.png")] and not (store / ".decode.lock").exists()


def test_a_decode_reads_no_features(toy, tmp_path, monkeypatch):
    read = set()

    def spied(path, group, columns):
        read.update(columns)
        return read_group(path, group, columns)

    model = small_toklip()
    encode_with(["scenes:validation?count=2"], tmp_path / "store", model=model, tokens=True)
    monkeypatch.setattr(reader, "read_group", spied)
    decode_store(tmp_path / "store", tmp_path / "out")
    assert read == {"key", "ids", "height", "width", "caption"}


def test_a_key_below_another_picture_is_left_out_and_deletes_nothing(store_of, tmp_path):
    report = decode_store(store_of("a.png/b", "a", "c", "c.png/d", "z"), tmp_path / "out")
    assert below(tmp_path / "out") == ["a.png/b.png", "c.png", "z.png"]
    assert (report.pictures, report.left_out) == (3, 2)
    again = decode_store(tmp_path / "store", tmp_path / "out")
    assert (again.pictures, again.skipped, again.left_out) == (0, 3, 2)


def test_a_path_that_is_too_long_for_the_system_is_left_out(store_of, tmp_path):
    report = decode_store(store_of("/".join(["x" * 250] * 20), "z"), tmp_path / "out")
    assert (report.pictures, report.left_out) == (1, 1) and os.strerror(errno.ENAMETOOLONG) in report.first_left_out
