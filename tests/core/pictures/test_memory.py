"""Memory of reading a picture: a limit that callers can change, and little enough below it for many workers."""

import io
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from toklip_core.cli import cli
from toklip_core.config import MAX_PIXELS
from toklip_core.pictures import PictureError, open_picture

from tests.core.conftest import picture
from tests.support.encoding import encode_with

#: Prints, for each picture, the bytes a pixel that reading and squaring it takes beyond what a small one takes. Each is
#: read in a child of its own, since a process does not forget the most memory that it ever had.
MEASURED = """
import io, os, resource, sys
from PIL import Image
from toklip_core.pictures import open_picture, resized
def most():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
for path in sys.argv[1:]:
    if os.fork() == 0:
        small = io.BytesIO()
        with Image.open(path) as image:
            image.resize((8, 8)).save(small, image.format)
        resized(open_picture(small), 32)
        before = most()
        image = open_picture(path)
        resized(image, 32)
        print((most() - before) / (image.width * image.height), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""
SIDE = 3000
#: Kind -> mode, and bytes a pixel. Measured: see docs/decisions/pictures-are-decoded-in-full.md.
COSTS = {
    "a.png": ("RGB", 8),
    "alpha.png": ("RGBA", 10),
    "grey-and-alpha.png": ("LA", 10),
    "sixteen.png": ("I;16", 9),
    "a.jpg": ("RGB", 8),
    "cmyk.jpg": ("CMYK", 10),
    "a.webp": ("RGB", 19),
    "float.tiff": ("F", 10),
}


@pytest.fixture(scope="module")
def costs(tmp_path_factory):
    """The bytes a pixel of each kind, by its name."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, (mode, _) in COSTS.items():
        Image.new(mode, (SIDE, SIDE)).save(folder / name)
    command = [sys.executable, "-W", "ignore", "-c", MEASURED, *(folder / name for name in COSTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return dict(zip(COSTS, map(float, done.stdout.split()), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", COSTS)
def test_a_picture_costs_no_more_bytes_a_pixel(costs, name):
    _, most = COSTS[name]
    assert 3 <= costs[name] <= most  # what comes back is 3 bytes: less would mean that nothing was measured


def test_sixteen_workers_that_meet_the_largest_picture_fit_into_32_gb():
    assert 16 * MAX_PIXELS * max(most for _, most in COSTS.values()) < 32e9


def test_the_limit_is_a_callers_in_both_directions(tmp_path):
    picture(0).save(tmp_path / "a.png")
    assert open_picture(tmp_path / "a.png", max_pixels=48 * 40).size == (48, 40)
    with pytest.raises(PictureError, match=r"48 x 40 pixels are more than the limit of 1919; raise max_pixels"):
        open_picture(tmp_path / "a.png", max_pixels=48 * 40 - 1)


def test_a_picture_above_the_limit_of_pillow_is_read_if_a_caller_wants_it(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    buffer = io.BytesIO()
    picture(0).save(buffer, "PNG")
    assert np.array_equal(np.asarray(open_picture(buffer, max_pixels=48 * 40)), np.asarray(picture(0)))
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.slow
def test_a_webp_of_a_few_bytes_and_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    Image.new("RGB", (16383, 4097)).save(tmp_path / "a.webp", lossless=True, method=0)
    with pytest.raises(PictureError, match="16383 x 4097 pixels are more than the limit of 67108864"):
        open_picture(tmp_path / "a.webp")


def test_the_limit_holds_for_every_picture_of_an_encode_in_files_and_tars(toy, photos, tmp_path):
    picture(9, (100, 100)).save(photos / "large.png")
    report = encode_with([photos], tmp_path / "s", tokenizer="mean-colour", max_pixels=48 * 40)
    assert (report.pictures, report.unreadable) == (5, 1) and "100 x 100 pixels" in report.first_unreadable
    again = encode_with([photos], tmp_path / "s", tokenizer="mean-colour", max_pixels=10**4)
    assert (again.pictures, again.unreadable) == (1, 0)


#: The commands of the core that read pictures, which lie in FOLDER/class/a.png, and as a row of pairs.jsonl.
COMMANDS = {
    "encode": ["encode", "FOLDER", "--out", "s", "--tokenizer", "mean-colour", "--workers", "0"],
    "classify": ["classify", "FOLDER", "--labels", "red,blue"],
    "explain": ["explain", "FOLDER/class/a.png", "red", "--json"],
    "search": ["search", "FOLDER", "red"],
    "zero-shot": ["evaluate", "zero-shot", "FOLDER"],
    "retrieval": ["evaluate", "retrieval", "pairs.jsonl"],
}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_reads_pictures_has_the_limit(toy, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder/class").mkdir(parents=True)
    picture(0, (100, 100)).save("folder/class/a.png")
    (tmp_path / "pairs.jsonl").write_text('{"image": "folder/class/a.png", "captions": ["red"]}\n')
    arguments = [word.replace("FOLDER", "folder") for word in COMMANDS[command]]
    result = CliRunner().invoke(cli, [*arguments, "--max-pixels", "9999"])
    assert result.exit_code == 1 and "100 x 100 pixels are more than the limit of 9999" in result.stderr
    assert CliRunner().invoke(cli, [*arguments, "--max-pixels", "10000"]).exit_code == 0
