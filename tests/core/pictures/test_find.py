"""Pictures are found once, get safe keys, are read upright, and are made square as for the published figures."""

import errno
import io
import json
import os
import re
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageFile
from toklip_core.pictures import (
    Entry,
    PictureError,
    entries,
    find_pictures,
    key_of,
    list_pictures,
    normalized,
    open_picture,
    parquet_rows,
    resample,
    resized,
    share_of_rank,
    share_of_worker,
    to_picture,
    to_pixels,
)

from tests.core.conftest import picture
from tests.support.starved import no_file_handles, raising, system_error


def tar(path, members):
    """Write a tar of name -> bytes, in order; a list of pairs may repeat a name."""
    with tarfile.open(path, "w") as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def jpeg(seed=0):
    buffer = io.BytesIO()
    picture(seed).save(buffer, "JPEG")
    return buffer.getvalue()


def png():
    buffer = io.BytesIO()
    picture(0, (16, 16)).save(buffer, "PNG")
    assert 512 < len(buffer.getvalue()) <= 1024
    return buffer.getvalue()


def levels(image):
    return np.asarray(image)


def keys(inputs):
    return [entry.key for entry in entries(find_pictures(inputs))]


@pytest.mark.parametrize(
    ("typed", "key"),
    [
        ("photos/a.jpg", "photos/a.jpg"),
        ("./a.jpg", "a.jpg"),
        ("../photos/a.jpg", "photos/a.jpg"),
        ("../../a.jpg", "a.jpg"),
        ("/data//photos/a.jpg", "data/photos/a.jpg"),
        ("photos/../other/a.jpg", "other/a.jpg"),
        (os.fsdecode(b"caf\xe9.jpg"), "caf\\xe9.jpg"),
    ],
)
def test_a_key_never_climbs_and_is_always_text(typed, key):
    assert key_of(typed) == key


def test_a_folder_is_searched_with_all_below_it_but_for_hidden_names(photos, monkeypatch):
    (photos / ".thumbs").mkdir()
    picture(0).save(photos / ".thumbs/x.jpg")
    picture(0).save(photos / "._a.jpg", "JPEG")
    (photos / "deep/notes.md").write_text("no picture")
    monkeypatch.chdir(photos.parent)
    expected = ["photos/a.jpg", "photos/b.png", "photos/c.webp", "photos/deep/d.jpg", "photos/deep/e.bmp"]
    assert keys(["photos"]) == expected
    assert keys(["photos/*"]) == expected
    assert keys(["photos/**/*.jpg"]) == ["photos/a.jpg", "photos/deep/d.jpg"]


def test_a_folder_that_links_to_itself_is_searched_once(photos):
    (photos / "deep/again").symlink_to(photos)
    assert len(keys([photos])) == 5


def test_a_file_given_twice_counts_once(photos, monkeypatch):
    monkeypatch.chdir(photos)
    assert keys(["a.jpg", "./a.jpg", photos / "a.jpg", "."]) == ["a.jpg", "b.png", "c.webp", "deep/d.jpg", "deep/e.bmp"]


def test_a_name_with_brackets_is_a_name(tmp_path):
    picture(0).save(tmp_path / "a[1].jpg")
    assert len(keys([tmp_path / "a[1].jpg"])) == 1


def test_captions_beside_a_named_picture_are_no_pictures(photos):
    (photos / "a.txt").write_text("a cat\n")
    (photos / "b.json").write_text(json.dumps({"caption": "a dog"}))
    found = list(entries(find_pictures(sorted(photos.glob("?.*")))))
    assert [entry.caption() for entry in found] == ["a cat", "a dog", None]


def test_an_img2dataset_tar_gives_pictures_and_captions_and_writes_no_file(tmp_path, monkeypatch):
    members = [
        ("000000.jpg", jpeg(0)),
        ("000000.json", json.dumps({"caption": "from json", "key": "000000"}).encode()),
        ("000000.txt", b"from txt"),
        ("000001.jpg", jpeg(1)),
        ("000001.json", json.dumps({"caption": "only json"}).encode()),
        ("./sub/000002.jpg", jpeg(2)),
        ("sub/000002.json", b"{broken"),
    ]
    tar(tmp_path / "00000.tar", members)
    monkeypatch.chdir(tmp_path)
    found = list(entries(find_pictures(["00000.tar"])))
    assert [entry.key for entry in found] == [
        "00000.tar/000000.jpg",
        "00000.tar/000001.jpg",
        "00000.tar/sub/000002.jpg",
    ]
    assert [entry.caption() for entry in found] == ["from txt", "only json", None]
    for number, entry in enumerate(found):
        assert np.array_equal(levels(entry.image()), levels(open_picture(io.BytesIO(jpeg(number)))))
    assert [path.name for path in tmp_path.iterdir()] == ["00000.tar"]


#: Kind -> suffix and bytes of a text beside a picture, and the caption that it is.
TEXTS = {
    "half a character": (".json", rb'{"caption": "smile \ud83d"}', "smile \ufffd"),
    "a character in two halves": (".json", rb'{"caption": "smile \ud83d\ude00"}', "smile \U0001f600"),
    "nested too deep": (".json", b'{"caption": ' + b"[" * 500_000, None),
    "a list": (".json", b'["caption"]', None),
    "a number": (".json", b'{"caption": 1}', None),
    "1 MiB": (".txt", b"x" * 2**20, "x" * 2**20),
    "above 1 MiB": (".txt", b"x" * (2**20 + 1), None),
    "JSON above 1 MiB": (".json", json.dumps({"caption": "x" * 2**20}).encode(), None),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_a_text_that_is_no_caption_costs_no_picture(tmp_path, kind):
    suffix, data, caption = TEXTS[kind]
    (tmp_path / "a.jpg").write_bytes(jpeg())
    (tmp_path / "a").with_suffix(suffix).write_bytes(data)
    tar(tmp_path / "x.tar", [("a.jpg", jpeg()), (f"a{suffix}", data)])
    assert [entry.caption() for entry in entries(find_pictures([tmp_path]))] == [caption, caption]


def test_a_header_that_claims_a_text_of_terabytes_is_not_believed(tmp_path):
    claims = tarfile.TarInfo("a.txt")
    claims.size = 2**40
    path = tar(tmp_path / "x.tar", [("a.png", png())])
    path.write_bytes(path.read_bytes()[:1536] + claims.tobuf(tarfile.GNU_FORMAT))
    os.truncate(path, 2**40 + 2048)  # a sparse file: that much is there
    found = list(entries(find_pictures([path])))
    assert found[0].image().size == (16, 16) and found[0].caption() is None


def test_a_header_that_claims_less_than_nothing_ends_the_tar(tmp_path):
    claims = tarfile.TarInfo("b.jpg")
    claims.size = -1024
    path = tar(tmp_path / "x.tar", [("a.png", png())])
    path.write_bytes(path.read_bytes()[:1536] + claims.tobuf(tarfile.GNU_FORMAT))
    good, end = entries(find_pictures([path]))
    assert good.image().size == (16, 16)
    with pytest.raises(PictureError, match="not a tar, or a damaged one"):
        end.image()


def test_a_caption_that_the_system_does_not_give_is_reported_and_not_lost(photos, monkeypatch):
    (photos / "a.txt").write_text("a cat")
    opened = Path.open

    def closed(path, *arguments):
        if path.suffix == ".txt":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *arguments)

    monkeypatch.setattr(Path, "open", closed)
    (entry,) = entries(find_pictures([photos / "a.jpg"]))
    with pytest.raises(PictureError, match=r"its caption cannot be read: .*Permission denied: .*a\.txt"):
        entry.caption()


def test_a_tar_member_that_climbs_is_a_link_or_comes_twice_is_named_and_not_read(tmp_path):
    path = tar(
        tmp_path / "x.tar",
        [("../up.jpg", jpeg()), ("/outside.jpg", jpeg()), ("a.jpg", jpeg()), ("a.jpg", jpeg()), ("up.jpg", jpeg())],
    )
    with tarfile.open(path, "a") as file:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    found = {entry.key.removeprefix(key_of(path)): entry for entry in entries(find_pictures([path]))}
    assert set(found) == {"/../up.jpg", "//outside.jpg", "/a.jpg", "/a.jpg#2", "/up.jpg", "/link.jpg"}
    for name, why in {
        "/../up.jpg": "climbs",
        "//outside.jpg": "climbs",
        "/a.jpg#2": "second",
        "/link.jpg": "plain",
    }.items():
        with pytest.raises(PictureError, match=why):
            found[name].image()
    assert found["/a.jpg"].image().size == found["/up.jpg"].image().size == (48, 40)


@pytest.mark.parametrize(("cut", "whole"), [(0, 0), (100, 0), (1500, 1), (1800, 1), (2100, 1), (4608, 3)])
def test_a_cut_tar_gives_what_is_whole_and_then_says_so(tmp_path, cut, whole):
    path = tmp_path / "x.tar"
    tar(path, [(f"{n}.png", png()) for n in range(3)])  # 512 bytes of header, two blocks of data each
    path.write_bytes(path.read_bytes()[:cut])
    readable, reasons = 0, []
    for entry in entries(find_pictures([path])):
        try:
            readable += entry.image().size == (16, 16)
        except PictureError as error:
            reasons.append(str(error))
    assert readable == whole
    assert not reasons if cut == 4608 else reasons[-1].startswith("not a tar, or a damaged one")


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_of_ranks_and_of_their_workers_are_a_partition(tmp_path, photos, count):
    for number in range(3):
        tar(tmp_path / f"{number}.tar", [(f"{n}.jpg", b"") for n in range(5)])
    sources = find_pictures([photos, *sorted(tmp_path.glob("*.tar"))])
    shares = [
        [entry.key for entry in entries(share_of_worker(share_of_rank(sources, rank, count), worker, 2))]
        for rank in range(count)
        for worker in range(2)
    ]
    assert sorted(key for part in shares for key in part) == sorted(entry.key for entry in entries(sources))
    assert len(sources) == 8 and sum(map(len, shares)) == 20


def test_many_tars_are_shared_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(64):
        tar(tmp_path / f"{number:02d}.tar", [(f"{n}.jpg", b"") for n in range(3)])
    shares = [{entry.key[:6] for entry in entries(share_of_rank(find_pictures(["."]), rank, 2))} for rank in range(2)]
    assert not shares[0] & shares[1] and len(shares[0] | shares[1]) == 64 and min(map(len, shares)) > 20


def test_a_picture_keeps_its_rank_whatever_else_is_listed(tmp_path, photos, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tar(tmp_path / "m.tar", [(f"{n}.jpg", b"") for n in range(9)])

    def ranks():
        found = find_pictures(["photos", *sorted(Path().glob("*.tar"))])
        return {entry.key: rank for rank in range(3) for entry in entries(share_of_rank(found, rank, 3))}

    before = ranks()
    picture(7).save(photos / "0.jpg")
    picture(8).save(photos / "between.jpg")
    for number in range(4):
        tar(tmp_path / f"{number}.tar", [("0.jpg", b"")])
    tar(tmp_path / "m.tar", [(f"{n}.jpg", b"") for n in range(-1, 9)])
    after = ranks()
    assert len(before) == 14 and len(after) == 21 and set(before.values()) == {0, 1, 2}
    assert before.items() <= after.items()


def test_all_eight_orientations_come_upright(tmp_path):
    upright = levels(picture(0, (6, 4)).resize((48, 32), Image.Resampling.NEAREST))
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.swapaxes(0, 1), 6: np.rot90(upright),
        7: np.rot90(upright, 2).swapaxes(0, 1), 8: np.rot90(upright, -1),
    }  # fmt: skip
    for orientation, array in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        for suffix in ("png", "tiff"):
            path = tmp_path / f"{orientation}.{suffix}"
            Image.fromarray(np.ascontiguousarray(array)).save(path, exif=exif)
            assert np.array_equal(levels(open_picture(path)), upright), path.name


def test_every_mode_becomes_the_rgb_that_is_seen(tmp_path):
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    sixteen = (ramp.astype(np.uint16) * 257, ramp)
    half_red = np.broadcast_to(np.array([255, 0, 0, 128], np.uint8), (4, 4, 4))
    palette = Image.fromarray(ramp).convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE, colors=256)
    cases = {
        "grey.png": (Image.fromarray(ramp), ramp),
        "one.png": (Image.fromarray(ramp > 127), (ramp > 127) * 255),
        "sixteen.png": (Image.fromarray(sixteen[0]), ramp),
        "sixteen.tiff": (Image.fromarray(sixteen[0]), ramp),
        "integers.tiff": (Image.fromarray(sixteen[0].astype(np.int32)), ramp),
        "levels.tiff": (Image.fromarray(ramp.astype(np.int32)), ramp),
        "dark.png": (Image.fromarray(ramp.astype(np.uint16)), (ramp + 128.0) // 257),
        "float.tiff": (Image.fromarray(ramp.astype(np.float32) / 255), ramp),
        "palette.png": (palette, np.asarray(palette.convert("RGB"))),
        "cmyk.tiff": (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), [255, 0, 0]),
        "alpha.png": (Image.fromarray(half_red), [255, 127, 127]),
        "grey_alpha.png": (Image.new("LA", (4, 4), (0, 0)), [255, 255, 255]),
    }
    for name, (image, expected) in cases.items():
        image.save(tmp_path / name)
        got = open_picture(tmp_path / name)
        expected = np.asarray(expected)
        expected = expected[..., None] if expected.ndim == 2 else expected
        assert got.mode == "RGB"
        assert np.array_equal(levels(got), np.broadcast_to(expected, levels(got).shape)), name


def test_every_16_bit_level_is_rounded_as_by_exact_arithmetic(tmp_path):
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(every).save(tmp_path / "a.png")
    assert np.array_equal(levels(open_picture(tmp_path / "a.png"))[..., 0], (every.astype(int) * 255 + 32767) // 65535)


def test_integers_beyond_16_bits_are_refused(tmp_path):
    Image.fromarray(np.array([[0, 65536]], np.int32)).save(tmp_path / "a.tiff")
    with pytest.raises(PictureError, match="values from 0 to 65536; wanted 0 to 65535"):
        open_picture(tmp_path / "a.tiff")


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_more_than_eight_bits_cost_at_most_ten_bytes_a_pixel(tmp_path, dtype):
    """Beside Pillow's own."""
    Image.fromarray(np.ones((1000, 500), dtype)).save(tmp_path / "a.tiff", compression="tiff_lzw")
    open_picture(tmp_path / "a.tiff")  # imports
    tracemalloc.start()
    open_picture(tmp_path / "a.tiff")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most <= 10 * 1000 * 500


def test_a_transparent_palette_and_colour_key_lie_on_white(tmp_path):
    clear = Image.new("P", (4, 4), 0)
    clear.putpalette([0, 0, 0, 9, 9, 9])
    clear.save(tmp_path / "p.png", transparency=0)
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "rgb.png", transparency=(1, 2, 3))
    clear.save(tmp_path / "p.gif", transparency=0)
    for name in ("p.png", "rgb.png", "p.gif"):
        assert (levels(open_picture(tmp_path / name)) == 255).all(), name


def test_an_animation_is_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    for name, options in {"a.gif": {}, "a.png": {}, "a.webp": {"lossless": True}}.items():
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        assert np.array_equal(levels(open_picture(tmp_path / name)), levels(frames[0])), name


@pytest.mark.parametrize(
    ("size", "target"), [((48, 40), 32), ((500, 333), 64), ((333, 500), 64), ((20, 30), 64), ((64, 64), 64)]
)
def test_crop_is_adms(size, target):
    image = picture(1, size)
    expected = image
    while min(expected.size) >= 2 * target:
        expected = expected.resize(tuple(side // 2 for side in expected.size), Image.Resampling.BOX)
    scale = target / min(expected.size)
    expected = expected.resize(tuple(round(side * scale) for side in expected.size), Image.Resampling.BICUBIC)
    y, x = (levels(expected).shape[0] - target) // 2, (levels(expected).shape[1] - target) // 2
    assert np.array_equal(levels(resized(image, target)), levels(expected)[y : y + target, x : x + target])


def test_a_line_of_pixels_is_squared_without_being_enlarged_whole():
    line = np.zeros((1, 9001, 3), np.uint8)
    line[:, 4500] = 255  # the middle
    for image in (Image.fromarray(line), Image.fromarray(line.swapaxes(0, 1))):
        square = levels(resized(image, 64))
        assert square.shape == (64, 64, 3)
        assert square[32, 32].tolist() == [255] * 3  # one pixel fills the square, and it is the middle one
        assert levels(resized(image, 64, "squash")).shape == (64, 64, 3)
    dot = Image.new("RGB", (1, 1), (1, 2, 3))
    for resize in ("crop", "squash"):
        assert (levels(resized(dot, 64, resize)) == [1, 2, 3]).all()


def test_squash_keeps_the_whole_picture_and_does_not_alias():
    stripes = np.zeros((64, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    grey = levels(resized(Image.fromarray(stripes), 64, "squash"))
    assert abs(grey.astype(int) - 128).max() <= 16


def test_pad_keeps_the_whole_picture_and_its_ratio_on_grey():
    wide = Image.fromarray(np.full((30, 100, 3), 255, np.uint8))
    found = levels(resized(wide, 64, "pad"))
    # 64 * 30 / 100 is 19.2, which Janus rounds down; 22 rows of grey are above it and 23 below.
    assert (found[:22] == 127).all() and (found[22:41] == 255).all() and (found[41:] == 127).all()
    tall = levels(resized(wide.transpose(Image.Transpose.ROTATE_90), 64, "pad"))
    assert (tall == found.transpose(1, 0, 2)).all()
    line = levels(resized(Image.fromarray(np.zeros((1, 3000, 3), np.uint8)), 64, "pad"))
    assert (line[31] == 0).all() and (line[32] == 127).all()


@pytest.mark.parametrize("size", [24, 32, 80])
def test_resampled_pixels_are_those_of_pillows_bicubic_filter_within_their_range(size):
    pixels = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = resample(pixels, size)
    for mine, plane in zip(found.flatten(0, 1), pixels.flatten(0, 1).numpy(), strict=True):
        theirs = np.asarray(Image.fromarray(plane).resize((size, size), Image.Resampling.BICUBIC))
        torch.testing.assert_close(mine, torch.from_numpy(theirs.copy()).clamp(-1, 1), rtol=0, atol=1e-5)
    assert resample(pixels[..., :48, :], 48).equal(pixels[..., :48, :])


@pytest.mark.parametrize("size", [24, 32])
def test_resampled_stripes_become_grey(size):
    stripes = torch.ones(1, 3, 64, 64)
    stripes[..., ::2] = -1
    assert resample(stripes, size)[..., 2:-2].abs().max() < 0.15


def test_an_unknown_resize_is_named():
    with pytest.raises(ValueError, match="got resize 'stretch'; known are 'crop', 'squash' and 'pad'"):
        resized(picture(0), 32, "stretch")


def test_pixels_lie_in_minus_one_to_one_and_come_back_exactly():
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).expand(3, -1, -1)
    pixels = normalized(every)
    assert pixels.min() == -1 and pixels.max() == 1
    assert np.array_equal(levels(to_picture(pixels)), every.permute(1, 2, 0))
    image = picture(0, (32, 32))
    assert torch.equal(to_pixels(image, 32), normalized(torch.from_numpy(levels(image).copy())).permute(2, 0, 1))
    assert np.array_equal(levels(to_picture(torch.full((3, 2, 2), 9.0))), np.full((2, 2, 3), 255))


def test_a_picture_above_the_limit_is_refused_before_it_is_decoded(photos):
    assert open_picture(photos / "a.jpg", max_pixels=48 * 40).size == (48, 40)
    with pytest.raises(PictureError, match="48 x 40 pixels are more than the limit of 1919"):
        open_picture(photos / "a.jpg", max_pixels=48 * 40 - 1)


def test_one_scene_is_a_picture_and_several_are_none(tmp_path, monkeypatch):
    text = "scenes:held-out?count=1&seed=7"
    (entry,) = entries(find_pictures([text]))
    assert np.array_equal(levels(open_picture(text)), levels(entry.image()))
    with pytest.raises(PictureError, match="it names 100 scenes; wanted one picture, such as scenes:"):
        open_picture("scenes:held-out")
    with pytest.raises(PictureError, match="no split 'nowhere'"):
        open_picture("scenes:nowhere?count=1")
    with pytest.raises(PictureError, match="a scene of 64 px has more than 4095 pixels"):
        open_picture(text, max_pixels=64 * 64 - 1)
    monkeypatch.chdir(tmp_path)
    picture(0, (9, 9)).save("scenes:train", format="png")
    assert open_picture(Path("scenes:train")).size == open_picture("./scenes:train").size == (9, 9)


def test_the_name_of_a_picture_is_text_whatever_its_bytes_are(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    picture(0).save(path)
    (listed,) = list_pictures(find_pictures([tmp_path]))
    assert listed.name == f"{tmp_path}/caf\\xe9.png" and listed.read().size == picture(0).size


@pytest.mark.parametrize("kind", ["file", "tar", "parquet"])
def test_a_picture_is_not_unreadable_because_the_machine_fails(tmp_path, monkeypatch, kind):
    (entry,) = entries_of(tmp_path, kind)
    entry.image()
    parquet_rows._read_group.cache_clear()
    with pytest.raises(OSError, match="Too many open files"), no_file_handles():
        entry.image()
    monkeypatch.setattr(Image.Image, "load", raising(MemoryError()))
    monkeypatch.setattr(ImageFile.ImageFile, "load", raising(MemoryError()))
    with pytest.raises(MemoryError):
        entry.image()


def entries_of(folder, kind):
    """The entries of one picture, in a file of its own or in an archive."""
    if kind == "tar":
        tar(folder / "a.tar", [("1.png", png()), ("1.txt", b"grey")])
    elif kind == "parquet":
        pq.write_table(pa.table({"image": [png()], "caption": ["grey"]}), folder / "a.parquet")
    else:
        (folder / "a.png").write_bytes(png())
    return list(entries(find_pictures([next(folder.iterdir())])))


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_an_archive_is_not_damaged_because_the_machine_fails(tmp_path, kind):
    """Or its pictures would be missing in a training, of which nobody would see more than a line."""
    entries_of(tmp_path, kind)
    with pytest.raises(OSError, match="Too many open files"), no_file_handles():
        list(entries(find_pictures([tmp_path / f"a.{kind}"])))


def test_a_caption_is_not_unreadable_because_the_machine_fails(tmp_path):
    (entry,) = entries_of(tmp_path, "tar")
    assert entry.captions() == ["grey"]
    with pytest.raises(OSError, match="Too many open files"), no_file_handles():
        entry.captions()


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_an_archive_that_the_machine_cannot_read_is_named(tmp_path, monkeypatch, kind):
    (entry,) = entries_of(tmp_path, kind)
    parquet_rows._read_group.cache_clear()
    monkeypatch.setattr(parquet_rows.pq, "ParquetFile", raising(system_error("EIO")))
    monkeypatch.setattr(tarfile, "open", raising(system_error("EIO")))
    named = rf"\[Errno {errno.EIO}\] {re.escape(str(entry.path))}: {os.strerror(errno.EIO)}"
    with pytest.raises(OSError, match=named):
        list(entries(find_pictures([entry.path])))
    if kind == "parquet":
        with pytest.raises(OSError, match=named):
            entry.image()


def test_a_missing_picture_is_told_from_one_that_may_not_be_read(tmp_path, monkeypatch):
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "file").touch()
    for name in ("loop.png", "gone.png", "file/a.png", f"{'a' * 300}.png"):
        with pytest.raises(PictureError, match=r"^no file, or a link to none$"):
            Entry("a.png", tmp_path / name).image()
    (tmp_path / "a.png").write_bytes(png())
    monkeypatch.setattr(os, "stat", raising(system_error("EACCES")))
    with pytest.raises(PictureError, match=f"^{os.strerror(errno.EACCES)}$"):
        Entry("a.png", tmp_path / "a.png").image()


def test_a_picture_with_the_longest_name_has_no_caption(tmp_path):
    """Its .json would have a name of 256 bytes."""
    (tmp_path / f"{'a' * 251}.png").write_bytes(png())
    (entry,) = entries(find_pictures([tmp_path]))
    assert entry.captions() == [] and entry.image().size


def test_a_caption_is_not_dropped_because_its_file_is_stale(tmp_path, monkeypatch):
    """Python 3.14 takes a file for missing whatever the error is."""
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "a.txt").write_text("grey")
    (entry,) = entries(find_pictures([tmp_path]))
    assert entry.captions() == ["grey"]
    stat = os.stat

    def failing(path, *arguments, **options):
        if str(path).endswith(".txt"):
            raise system_error("ESTALE")
        return stat(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", failing)
    monkeypatch.setattr(Path, "is_file", os.path.isfile)
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        entry.captions()


def test_a_picture_is_not_left_lying_because_the_machine_fails(tmp_path, monkeypatch):
    """Broken metadata are passed over, and a rotation that could not be read is not."""
    (tmp_path / "a.png").write_bytes(png())
    monkeypatch.setattr(Image.Image, "getexif", raising(ValueError("broken")))
    open_picture(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "getexif", raising(MemoryError()))
    with pytest.raises(MemoryError):
        open_picture(tmp_path / "a.png")


def test_a_header_that_claims_more_than_the_tar_has_is_damage_and_no_lack_of_memory(tmp_path):
    """Its long name would take a thousand terabytes."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 10**15
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10_000))
    (entry,) = entries(find_pictures([tmp_path / "a.tar"]))
    with pytest.raises(PictureError, match="not a tar, or a damaged one"):
        entry.image()
