"""Pixels are read despite profiles and texts in the file that Pillow refuses to inflate."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, features
from toklip_core.pictures import PictureError, open_picture, upright_rgb

from tests.core.conftest import picture

LONG = 2 * 2**20
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*before, after=()):
    """A PNG with chunks before and behind its pixels."""
    buffer = io.BytesIO()
    picture(0).save(buffer, "PNG")
    data = buffer.getvalue()
    head, pixels, end = data[:33], data[33:-12], data[-12:]
    return head + b"".join(before) + pixels + b"".join(after) + end


def exif(orientation):
    found = Image.Exif()
    found[0x0112] = orientation
    return found.tobytes()


def raw_exif(orientation):
    data = exif(orientation)
    return b"\nexif\n%8d\n%s\n" % (len(data), data.hex().encode())


def zipped(kind, key, text):
    between = b"\0\0" if kind in (b"zTXt", b"iCCP") else b"\0\1\0\0\0"
    return chunk(kind, key + between + zlib.compress(text))


PROFILE = zipped(b"iCCP", b"a profile", b"\0" * LONG)
COMMENT = zipped(b"zTXt", b"Comment", b"x" * LONG)
MANY = [zipped(b"zTXt", b"Comment", b"x" * 2**20) for _ in range(66)]

#: Kind -> a PNG, and how its picture is turned.
LARGE = {
    "a profile": (png(PROFILE), 1),
    "a zipped text": (png(COMMENT), 1),
    "a zipped text in UTF-8": (png(zipped(b"iTXt", b"Comment", b"x" * LONG)), 1),
    "a text behind the pixels": (png(after=[COMMENT]), 1),
    "a profile and two texts": (png(PROFILE, COMMENT, after=[COMMENT]), 1),
    "many texts, each of them small enough": (png(*MANY), 1),
    "a text before it says how it lies": (png(COMMENT, chunk(b"eXIf", exif(3))), 3),
    "a text, and behind the pixels how it lies": (png(COMMENT, after=[chunk(b"eXIf", exif(3))]), 3),
    "a text, and XMP": (png(COMMENT, chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)), 3),
    "a text, and zipped XMP": (png(COMMENT, zipped(b"iTXt", b"XML:com.adobe.xmp", XMP)), 3),
    "a text, and Exif as ImageMagick writes it": (
        png(COMMENT, zipped(b"zTXt", b"Raw profile type exif", raw_exif(3))), 3
    ),
    "XMP that is too long itself": (png(zipped(b"iTXt", b"XML:com.adobe.xmp", b"x" * LONG)), 1),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", LARGE)
def test_a_png_is_read_whatever_is_written_beside_its_pixels(tmp_path, kind):
    data, orientation = LARGE[kind]
    expected = np.asarray(picture(0))[:: -1 if orientation == 3 else 1, :: -1 if orientation == 3 else 1]
    (tmp_path / "a.png").write_bytes(data)
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), io.BytesIO(data)):
        assert np.array_equal(np.asarray(open_picture(source)), expected)
    assert (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY) == (2**20, 2**26)


def test_a_picture_of_pillow_with_a_long_text_behind_its_pixels_is_read():
    data, _ = LARGE["a text behind the pixels"]
    assert np.array_equal(np.asarray(upright_rgb(Image.open(io.BytesIO(data)))), np.asarray(picture(0)))


def test_a_damaged_png_with_a_long_text_is_refused_for_its_damage():
    data, _ = LARGE["a zipped text"]
    with pytest.raises(PictureError, match="runcated"):
        open_picture(io.BytesIO(data[:-300]))


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "WEBP", *(["AVIF"] if features.check("avif") else [])])
def test_other_formats_with_two_megabytes_of_metadata_are_read(kind):
    noise = np.random.default_rng(0).integers(0, 256, LONG, np.uint8).tobytes()
    plain, large = io.BytesIO(), io.BytesIO()
    picture(0).save(plain, kind)
    picture(0).save(large, kind, icc_profile=noise, **({"comment": b"x" * 60000} if kind == "JPEG" else {}))
    assert len(large.getvalue()) > LONG
    assert np.array_equal(np.asarray(open_picture(large)), np.asarray(open_picture(plain)))
