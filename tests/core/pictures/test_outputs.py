"""The output of a command is checked before any work: no input is overwritten, and a wrong path is named."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from toklip_core.cli import cli
from toklip_core.pictures import refuse_output

from tests.core.conftest import picture


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    picture(0).save("photos/a.png")
    Path("hard.png").hardlink_to("photos/a.png")
    Path("soft.png").symlink_to("photos/a.png")
    return tmp_path


@pytest.mark.parametrize("out", ["photos/a.png", "./photos/../photos/a.png", "hard.png", "soft.png"])
@pytest.mark.parametrize("inputs", [["photos/a.png"], ["photos"], ["photos/*.png"], ["nowhere", "photos"]])
def test_an_input_is_not_written_over_by_whatever_name(inputs, out, here):
    with pytest.raises(ValueError, match=r"got --out .*a?.png, which is one of the inputs and would be written over"):
        refuse_output(out, inputs)


def test_a_file_that_is_no_input_may_be_written_over(here):
    picture(1).save("b.png")
    refuse_output("b.png", ["photos"])
    refuse_output("new.png", ["photos", "nowhere"])


def test_a_place_where_nothing_can_be_written_is_said_before_any_work(here, monkeypatch):
    with pytest.raises(ValueError, match="got --npz photos, which is a folder; wanted the name of a file"):
        refuse_output("photos", option="--npz")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere to write b.png into; make it first"):
        refuse_output("nowhere/b.png")
    with pytest.raises(ValueError, match=r"got --out b.gif; wanted a name that ends in .png or .jpg"):
        refuse_output("b.gif", suffixes=[".png", ".jpg"])
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match=r"nothing can be written into .*, and b.png is to be"):
        refuse_output("b.png")


@pytest.mark.parametrize(
    "words",
    [
        ["explain", "photos/a.png", "red", "--out", "hard.png"],
        ["search", "photos", "red", "--out", "photos/a.png"],
        ["convert", "model/model.safetensors", "model"],
    ],
)
def test_a_command_does_not_write_over_what_it_reads(words, here):
    Path("model").mkdir()
    Path("model/model.safetensors").write_bytes(b"weights")
    before = Path("photos/a.png").read_bytes()
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 1 and "is one of the inputs and would be written over" in done.stderr, done.output
    assert Path("photos/a.png").read_bytes() == before and Path("model/model.safetensors").read_bytes() == b"weights"
