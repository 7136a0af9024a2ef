"""A picture is read as people see it: upright, on white, both from a file and from Pillow."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, features
from toklip_core.pictures import open_picture, upright_rgb

from tests.core.conftest import picture

ORIENTATION = 0x0112
FORMATS = ["JPEG", "PNG", "TIFF", "WEBP", "MPO", *(["AVIF"] if features.check("avif") else [])]
COMPRESSIONS = {"TIFF": ["raw", "tiff_lzw", "tiff_deflate", "jpeg"]}
#: Modes of which Pillow maps an uncompressed TIFF into memory, where it has its path; and one that it always reads.
MAPPED = ["L", "RGBA", "I;16", "RGB"]


def levels(image):
    return np.asarray(image)


def file_of(kind, orientation, compression=None, mode="RGB"):
    """A file of red, green and blue stripes and a black corner, upright once it is turned as its tag says."""
    stored = np.zeros((32, 48, 3), np.uint8)
    for band in range(3):
        stored[:, 16 * band : 16 * band + 16, band] = 255
    stored[:8, :8] = 0
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[ORIENTATION] = orientation
    options = {"compression": compression} if compression else {}
    as_mode(stored, mode).save(buffer, kind, exif=exif, **options)
    return buffer.getvalue()


def as_mode(stored, mode):
    """Levels (H, W, 3) as a picture of a mode, with other levels in each row and column where it has one channel."""
    if mode == "RGB":
        return Image.fromarray(stored)
    places = np.arange(stored.shape[0] * stored.shape[1]).reshape(stored.shape[:2])
    if mode == "I;16":
        return Image.fromarray((places * 37).astype(np.uint16))
    grey = (places * 7 % 256).astype(np.uint8)
    return Image.fromarray(grey if mode == "L" else np.dstack([stored, grey]))


def upright(data):
    """The stored pixels, turned by numpy."""
    with Image.open(io.BytesIO(data)) as image:
        orientation = image.getexif().get(ORIENTATION, 1)
        if image.format == "TIFF":
            # Pillow turns it as it loads: take the tag away in the bytes, and what is stored is what is read.
            tag = struct.pack("<HHIHH", ORIENTATION, 3, 1, orientation, 0)
            assert data.count(tag) == 1
            image = Image.open(io.BytesIO(data.replace(tag, struct.pack("<HHIHH", ORIENTATION, 3, 1, 1, 0))))
        stored = levels(image.convert("RGB"))
    return turned(stored, orientation)


def turned(stored, orientation):
    """Rows and columns as they are stored, turned by numpy."""
    turns = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: np.rot90,
    }  # fmt: skip
    return turns[orientation](stored)


def closed(path):
    with Image.open(path) as image:
        image.load()
    return image


def asked_first(path):
    image = Image.open(path)
    image.getexif()
    return image


#: How somebody comes by a picture of Pillow.
OBJECTS = {
    "lazy": Image.open,
    "asked for its metadata": asked_first,
    "loaded and closed": closed,
    "a copy": lambda path: Image.open(path).copy(),
    "a copy of a copy": lambda path: closed(path).copy().copy(),
    "as RGB": lambda path: Image.open(path).convert("RGB"),
    "turned by exif_transpose": lambda path: ImageOps.exif_transpose(Image.open(path)),
    "turned and copied": lambda path: ImageOps.exif_transpose(closed(path)).copy(),
    "read by us": open_picture,
    "read by us twice": lambda path: upright_rgb(open_picture(path)),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", FORMATS)
def test_a_picture_is_turned_once_however_it_is_passed(tmp_path, kind, orientation):
    for compression in COMPRESSIONS.get(kind, [None]):
        data = file_of(kind, orientation, compression)
        path = tmp_path / f"a.{kind.lower()}"
        path.write_bytes(data)
        expected = upright(data)
        assert np.array_equal(levels(open_picture(path)), expected), compression
        for name, opened in OBJECTS.items():
            assert np.array_equal(levels(upright_rgb(opened(path))), expected), (name, compression)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", MAPPED)
def test_a_tiff_that_pillow_would_map_into_memory_is_turned_as_any_other(tmp_path, mode, orientation):
    stored = levels(open_picture(io.BytesIO(file_of("TIFF", 1, "tiff_lzw", mode))))
    expected = turned(stored, orientation)
    for compression in ("raw", "tiff_lzw", "tiff_deflate"):
        data, path = file_of("TIFF", orientation, compression, mode), tmp_path / "a.tif"
        path.write_bytes(data)
        opened = {
            "by path": open_picture(path),
            "by name": open_picture(str(path)),
            "bytes": open_picture(io.BytesIO(data)),
            "lazy": upright_rgb(Image.open(path)),
            "asked for its metadata": upright_rgb(asked_first(path)),
        }
        for name, image in opened.items():
            assert np.array_equal(levels(image), expected), (name, compression)


def test_a_lazy_tiff_keeps_the_name_of_its_file(tmp_path):
    (tmp_path / "a.tif").write_bytes(file_of("TIFF", 6, mode="L"))
    image = Image.open(tmp_path / "a.tif")
    upright_rgb(image)
    assert image.filename == str(tmp_path / "a.tif")


def test_a_picture_turned_in_place_is_not_turned_again(tmp_path):
    for kind in FORMATS:
        path = tmp_path / f"a.{kind.lower()}"
        path.write_bytes(file_of(kind, 6))
        image = Image.open(path)
        ImageOps.exif_transpose(image, in_place=True)
        assert np.array_equal(levels(upright_rgb(image)), levels(open_picture(path))), kind


def test_a_picture_that_is_read_carries_no_orientation():
    for orientation in range(1, 9):
        read = open_picture(io.BytesIO(file_of("JPEG", orientation)))
        assert read.getexif().get(ORIENTATION, 1) == 1


def test_a_tag_that_cannot_be_written_again_does_not_keep_a_picture_lying(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    exif[0x010E] = "a picture"
    data = exif.tobytes().replace(struct.pack("<HH", 0x010E, 2), struct.pack("<HH", 0x010E, 99))
    Image.fromarray(levels(picture(0))).save(tmp_path / "a.png", exif=data)
    assert np.array_equal(levels(open_picture(tmp_path / "a.png")), levels(picture(0))[::-1, ::-1])


def test_integers_of_a_tiff_are_the_same_as_a_copy(tmp_path):
    Image.fromarray(np.arange(64, dtype=np.int32).reshape(8, 8)).save(tmp_path / "a.tiff")
    for opened in OBJECTS.values():
        if opened is not OBJECTS["as RGB"]:
            assert np.array_equal(levels(upright_rgb(opened(tmp_path / "a.tiff")))[..., 0].ravel(), np.arange(64))


def test_a_picture_whose_file_was_closed_too_early_says_so(tmp_path):
    picture(0).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        pass
    with pytest.raises(ValueError, match="its file was closed before its pixels were read; call load"):
        upright_rgb(image)


def test_what_a_picture_calls_transparent_is_the_same_the_second_time():
    image = Image.open(io.BytesIO(png(4, 1, 2, 0, [b"\x63"], clear(1))))
    assert np.array_equal(levels(upright_rgb(image)), levels(upright_rgb(image)))


def png(width, height, bits, colour, rows, *chunks):
    """A PNG of raw rows, as no library here writes them."""
    raw = b"".join(b"\0" + row for row in rows)
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    body = (struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


PALETTE = (b"PLTE", bytes([0, 0, 0, 9, 9, 9, 10, 20, 30, 40, 50, 60]))


def clear(*levels):
    return (b"tRNS", struct.pack(f">{len(levels)}H", *levels))


#: A row of pixels of which the first is transparent and black or dark, and what is seen of the others.
TRANSPARENT = {
    "1 bit, black is clear": (png(8, 1, 1, 0, [b"\x7f"], clear(0)), [255] * 8),
    "1 bit, white is clear": (png(8, 1, 1, 0, [b"\x80"], clear(1)), [255] + [0] * 7),
    "2 bits": (png(4, 1, 2, 0, [b"\x63"], clear(1)), [255, 170, 0, 255]),
    "2 bits, black": (png(4, 1, 2, 0, [b"\x1b"], clear(0)), [255, 85, 170, 255]),
    "4 bits": (png(2, 1, 4, 0, [b"\x35"], clear(3)), [255, 85]),
    "8 bits": (png(2, 1, 8, 0, [b"\x03\x04"], clear(3)), [255, 4]),
    "16 bits": (png(2, 1, 16, 0, [struct.pack(">HH", 1000, 1001)], clear(1000)), [255, 4]),
    "16 bits, black": (png(2, 1, 16, 0, [struct.pack(">HH", 0, 25700)], clear(0)), [255, 100]),
    "8 bits a colour": (png(2, 1, 8, 2, [bytes([1, 2, 3, 4, 4, 4])], clear(1, 2, 3)), [255, 4]),
    "16 bits a colour": (
        png(2, 1, 16, 2, [struct.pack(">6H", 0x1234, 0, 0, 1028, 1028, 1028)], clear(0x1234, 0, 0)), [255, 4]
    ),
    "16 bits a colour, below 256": (
        png(2, 1, 16, 2, [struct.pack(">6H", 1, 2, 3, 1028, 1028, 1028)], clear(1, 2, 3)), [255, 4]
    ),
    "a palette": (png(2, 1, 8, 3, [b"\0\1"], PALETTE, (b"tRNS", b"\0")), [255, 9]),
    "a palette, the second": (png(2, 1, 8, 3, [b"\1\0"], PALETTE, (b"tRNS", b"\xff\0")), [255, 0]),
    "half a palette": (png(2, 1, 8, 3, [b"\0\1"], PALETTE, (b"tRNS", b"\x80\xff")), [127, 9]),
    "a palette of 2 bits": (png(4, 1, 2, 3, [b"\x11"], PALETTE, (b"tRNS", b"\0")), [255, 9, 255, 9]),
    "grey and alpha": (png(2, 1, 8, 4, [bytes([0, 0, 7, 255])]), [255, 7]),
    "grey and alpha of 16 bits": (png(2, 1, 16, 4, [struct.pack(">4H", 0, 0, 1799, 65535)]), [255, 7]),
    "colours and alpha of 16 bits": (
        png(2, 1, 16, 6, [struct.pack(">8H", 0, 0, 0, 0, 1799, 1799, 1799, 65535)]), [255, 7]
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_what_is_transparent_lies_on_white(tmp_path, kind):
    data, expected = TRANSPARENT[kind]
    Path(tmp_path / "a.png").write_bytes(data)
    expected = np.repeat(np.array(expected, np.uint8)[None, :, None], 3, 2)
    assert np.array_equal(levels(open_picture(tmp_path / "a.png")), expected)
    assert np.array_equal(levels(upright_rgb(Image.open(tmp_path / "a.png"))), expected)


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBA", "RGBa"])
def test_every_mode_with_alpha_lies_on_white(mode):
    clear, solid = Image.new("RGBA", (4, 4), (9, 9, 9, 0)), Image.new("RGBA", (4, 4), (9, 9, 9, 255))
    for image, expected in ((clear, 255), (solid, 9)):
        if mode == "La":
            image = image.convert("LA")
        assert (levels(upright_rgb(image.convert(mode))) == expected).all(), expected


@pytest.mark.parametrize("mode", ["L", "I", "I;16", "I;16B", "I;16L", "RGB", "P", "1"])
def test_a_level_that_a_caller_calls_transparent_lies_on_white(mode):
    image = Image.new(mode, (4, 4), (7, 7, 7) if mode == "RGB" else 7 if mode != "1" else 255)
    image.info["transparency"] = (7, 7, 7) if mode == "RGB" else 7 if mode != "1" else 255
    assert (levels(upright_rgb(image)) == 255).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16", "F"])
def test_a_picture_of_many_stripes_is_that_of_its_pieces(mode):
    """A picture of 550,000 pixels is converted in three stripes, each piece of it in one."""
    noise = np.random.default_rng(0).integers(0, 256, (1100, 500, 4), np.uint8)
    image = {
        "I;16": lambda: Image.fromarray(noise.view(np.uint16)[..., 0].copy()),
        "F": lambda: Image.fromarray(noise[..., 0] / np.float32(255)),
    }.get(mode, lambda: Image.fromarray(noise).convert(mode))()
    if mode == "P":
        image.info["transparency"] = 3
    pieces = [image.crop((0, top, 500, top + 220)) for top in range(0, 1100, 220)]
    expected = np.concatenate([levels(upright_rgb(piece)) for piece in pieces])
    assert np.array_equal(levels(upright_rgb(image)), expected)
