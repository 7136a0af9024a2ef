"""Tokenizers on the same pictures: the figures of each alone, sizes that are named, and a sheet of the pictures."""

import json
import weakref
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from toklip_core.cli import cli
from toklip_core.config import Compute
from toklip_core.evaluation import compare_tokenizers, draw_comparison, evaluate_tokenizer
from toklip_core.pictures import PANEL_GAP, PANEL_SIDE, open_picture, resized, to_picture, to_pixels
from toklip_core.tokenizer import load_tokenizer

from tests.support.refusals import last_error
from tests.support.starved import failing_to_open, system_error

NAMES = ["mean-colour", "quarter-greys", "colour-bits"]

pytestmark = pytest.mark.usefixtures("toy", "hub")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of networks."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))


def compare(*words, status=0):
    result = CliRunner().invoke(cli, ["compare", "tokenizers", *map(str, words)])
    assert result.exit_code == status, (result.output, result.exception)
    return result


def test_each_tokenizer_has_the_figures_that_it_has_alone(photos):
    comparison = compare_tokenizers(NAMES, [photos], compute=Compute(batch_size=2))
    assert [one.label for one in comparison.tokenizers] == NAMES
    for one in comparison.tokenizers:
        alone = evaluate_tokenizer(one.label, [photos], compute=Compute(batch_size=2))
        assert one.report == replace(alone, protocol=one.report.protocol)
        assert one.report.protocol == {key: value for key, value in alone.protocol.items() if key != "inputs"}
        assert one.report.pictures_per_second > 0
        tokenizer = load_tokenizer(one.label)
        assert (one.grid, one.codebook_sizes) == (tokenizer.grid(32, 32), tokenizer.codebook_sizes)


def test_a_tokenizer_is_gone_when_the_next_one_is_loaded(photos, monkeypatch):
    loaded = []

    def load(name, weights):
        assert [module() for module in loaded] == [None] * len(loaded)
        tokenizer = load_tokenizer(name, weights)
        loaded.append(weakref.ref(tokenizer.module))
        return tokenizer

    monkeypatch.setattr("toklip_core.evaluation.comparison.load_tokenizer", load)
    compare_tokenizers(NAMES, [photos])
    assert len(loaded) == 3


def test_the_table_has_a_row_for_each_and_what_they_share_once(photos):
    text = compare(*NAMES, photos).stdout
    table, left_out, protocol = text.split("\n\n")
    header, *rows = [line.split() for line in table.splitlines()]
    assert header == ["tokenizer", "px", "bits", "PSNR", "SSIM", "LPIPS", "rFID", "usage", "pictures/s", "licence"]
    assert [row[:3] for row in rows] == [
        ["mean-colour", "32", "527"],
        ["quarter-greys", "32", "995"],
        ["colour-bits", "32", "1,792"],
    ]
    assert [row[5:7] for row in rows] == [["-", "-"]] * 3 and rows[1].count("-") == 3
    assert [sum(cell.endswith("%") for cell in row) for row in rows] == [1, 4, 1]
    assert left_out.startswith("LPIPS is left out (-): alexnet-owt-7be5be79.pth") and "\nRFID is left out" in left_out
    assert protocol.startswith(f"Protocol\n  inputs        {photos}\n  computed      in float32 on cpu\n  size")
    assert protocol.count("pictures      5\n") == 1 and "sha256" not in protocol


def test_sizes_that_differ_are_said_and_one_size_is_given_to_all(photos, monkeypatch):
    spec = load_tokenizer  # the tokenizer itself takes any multiple of 4
    assert spec("mean-colour").grid(64, 64) == (16, 16)
    original = type(load_tokenizer("mean-colour")).image_size.fget
    sizes = {"quarter-greys": 64}
    monkeypatch.setattr(
        "toklip_core.tokenizer.Tokenizer.image_size", property(lambda self: sizes.get(self.name, original(self)))
    )
    comparison = compare_tokenizers(NAMES[:2], [photos])
    assert [one.image_size for one in comparison.tokenizers] == [32, 64]
    assert [picture.size for one in comparison.tokenizers for picture in one.pictures[:1]] == [(32, 32), (64, 64)]
    assert comparison.originals[0].image.size == (64, 64) and "size" not in comparison.protocol
    assert comparison.as_text().count("LPIPS is left out (-): alexnet") == 1
    one, other = comparison.tokenizers
    other = replace(other, report=replace(other.report, left_out={"lpips": "too small"}))
    lines = replace(comparison, tokenizers=(one, other)).as_text().splitlines()
    assert "LPIPS of quarter-greys is left out (-): too small" in lines
    assert sum(line.startswith(("LPIPS of mean-colour is left", "RFID of mean-colour is left")) for line in lines) == 2
    assert "\n\nSizes differ: figures compare pictures of px x px with" in comparison.as_text()
    same = compare_tokenizers(NAMES[:2], [photos], image_size=48)
    assert [one.image_size for one in same.tokenizers] == [48, 48] and same.protocol["size"] == "48 x 48"
    assert "Sizes differ" not in same.as_text()


def test_weights_of_your_own_are_named_with_their_path_and_have_no_licence(photos, tmp_path):
    (tmp_path / "own.txt").write_text("0.5")
    rows = json.loads(compare("mean-colour", f"mean-colour={tmp_path}/own.txt", photos, "--json").stdout)["tokenizers"]
    assert [row["tokenizer"] for row in rows] == ["mean-colour", f"mean-colour={tmp_path}/own.txt"]
    assert rows[0]["protocol"]["weights"] != rows[1]["protocol"]["weights"] and rows[0]["psnr"] > rows[1]["psnr"]
    assert rows[1] | {"licence": ""} == rows[1] and rows[1]["codebook_sizes"] == [300] and rows[1]["grid"] == [8, 8]


@pytest.mark.slow
def test_the_sheet_has_the_same_pictures_through_each(photos, tmp_path):
    (photos / "0.jpg").write_text("no picture")
    comparison = compare_tokenizers(NAMES, [photos], shown=2)
    with failing_to_open("0.jpg", system_error("EIO")):
        again = compare_tokenizers(NAMES, [photos], shown=2)
    assert [picture.name for picture in again.originals] == [picture.name for picture in comparison.originals]
    assert len(again.unreadable) == 1 and "0.jpg: [Errno 5] " in again.unreadable[0]
    assert [picture.name.rsplit("/", 1)[-1] for picture in comparison.originals] == ["a.jpg", "b.png"]
    assert len(comparison.unreadable) == 1
    for one in comparison.tokenizers:
        tokenizer = load_tokenizer(one.label)
        for name, picture in zip(("a.jpg", "b.png"), one.pictures, strict=True):
            pixels = to_pixels(open_picture(photos / name), 32)[None]
            assert picture.tobytes() == to_picture(tokenizer.decode(tokenizer.encode(pixels))[0]).tobytes()
    sheet = draw_comparison(comparison)
    assert sheet.width == 24 + 4 * (PANEL_SIDE + 24)
    levels = np.asarray(sheet)
    second = [comparison.originals[1].image, *(one.pictures[1] for one in comparison.tokenizers)]
    for column, picture in enumerate(second):
        panel = np.asarray(resized(picture, PANEL_SIDE))
        left = 24 + column * (PANEL_SIDE + 24)
        tops = [
            top
            for top in range(PANEL_SIDE, sheet.height - PANEL_SIDE)
            if np.array_equal(levels[top : top + PANEL_SIDE, left : left + PANEL_SIDE], panel)
        ]
        assert len(tops) == 1 and tops[0] > PANEL_SIDE + PANEL_GAP
    out = tmp_path / "sheet.png"
    assert f"written: {out}" in compare(*NAMES, photos, "--shown", 2, "--out", out).stderr
    assert open_picture(out).tobytes() == sheet.tobytes()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["mean-color", "PHOTOS"], "'mean-color' is neither a tokenizer nor a picture that is there. Did you mean"),
        (["mean-colour", "quarter-grays", "PHOTOS"], "'quarter-grays' is neither a tokenizer nor a picture"),
        (["mean-colour", "absent.png"], "there is no file or folder 'absent.png'"),
        (["mean-colour", "mean-colour", "PHOTOS"], "the tokenizer 'mean-colour' occurs twice"),
        (["mean-colour=none.pt", "PHOTOS"], "got 'mean-colour=none.pt', but 'none.pt' is not there; wanted weights"),
        (["mean-colour", "PHOTOS", "--size", 30], "got a picture of 30 x 30; its sides must be multiples of 4"),
        (["mean-colour", "PHOTOS", "--out", "sheet.txt"], "got --out sheet.txt; wanted a name that ends in .png"),
    ],
)
def test_what_cannot_be_compared_is_one_line(photos, words, line):
    result = compare(*(photos if word == "PHOTOS" else word for word in words), status=1)
    last_error(result.stderr, line)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "name one or more tokenizers, such as vqgan-tiny, and after them the pictures"),
        (["mean-colour", "colour-bits"], "got mean-colour colour-bits alone; name pictures after the tokenizers"),
        (["./photos"], "name one or more tokenizers, such as vqgan-tiny, and after them the pictures"),
    ],
)
def test_words_that_are_missing_are_named(photos, monkeypatch, words, line):
    monkeypatch.chdir(photos.parent)
    assert f"Error: {line}" in compare(*words, status=2).stderr


@pytest.mark.parametrize(
    ("name", "size", "line"),
    [
        ("colour-bits", 64, "takes 32 x 32 alone; leave out the size, or give 32"),
        ("quarter-greys", 30, "takes multiples of 4 alone; give one that all tokenizers take, or leave out the size"),
    ],
)
def test_a_size_that_one_of_them_does_not_take_is_refused_before_the_first_is_measured(
    photos, monkeypatch, name, size, line
):
    monkeypatch.setattr("toklip_core.evaluation.comparison.load_tokenizer", None)
    refused = compare("mean-colour", name, photos, "--size", size, status=1)
    last_error(refused.stderr, f"got the size {size}, but {name!r} {line}")


def test_a_folder_that_is_named_like_a_tokenizer_is_typed_with_its_place(photos, monkeypatch):
    photos.rename(photos.parent / "mean-colour")
    monkeypatch.chdir(photos.parent)
    rows = json.loads(compare("mean-colour", "./mean-colour", "--json").stdout)["tokenizers"]
    assert [row["protocol"]["pictures"] for row in rows] == [5]
