"""Conversion of pictures of any mode to upright 8-bit RGB: orientation, transparency, and more than eight bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from toklip_core.files import is_machine_error
from toklip_core.pictures.png_texts import refused_for_its_texts

_EXIF_ORIENTATION = 0x0112
# Exif 2.32, table "Orientation": the transposition that makes the stored rows and columns upright. This is not
# ImageOps.exif_transpose, which copies upright pictures, and fails to turn one if another tag cannot be written again.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Number of pixels that are converted at a time; it limits the memory of intermediate copies.
_STRIPE = 2**18
# Eight-bit values per value of a PNG with fewer bits. Pillow multiplies the pixels by it, not the transparent value.
_SPREAD = {"L;2": 85, "L;4": 17}


def upright_rgb(image: Image.Image) -> Image.Image:
    """Return a picture upright, in 8-bit RGB, on white where it is transparent; the same object if it is so already.

    White is 65535 in 16 bits and 1 in floats. For 32-bit integers, unless the format says so, it is 255 if no value is
    larger, else 65535.

    Pass a rotated TIFF before it is loaded, because Pillow 13.0.0 scrambles some when it loads them by their path.

    The conversion takes 4 bytes per pixel beside the decoded picture, and 4 more if the picture is turned.

    Raises:
        ValueError: values are outside the range from black to white, or the file was closed before its pixels were
            read. A damaged file raises the errors of Pillow's decoders.
    """
    try:
        load_pixels(image)  # first, because a TIFF is upright, and says so, once it is loaded
    except ValueError as error:
        if not refused_for_its_texts(error):
            raise
        image.load()  # the pixels have been read, since the text comes after them
    clear = image.info.get("transparency")
    tells_white = image.mode != "I" or image.format not in (None, "TIFF")  # Pillow reads 16 bits as "I"
    image = _upright(image)
    if image.mode.startswith("I"):
        return _scaled(image, 65535, or_less=65535 if tells_white else 255, clear=clear)
    if image.mode == "F":
        return _scaled(image, 1, or_less=1)
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    return _in_stripes(image, _on_white)


def load_pixels(image: Image.Image) -> None:
    """Read the pixels of a picture, unless they have been read, and correct its transparent level.

    Raises:
        ValueError: the file was closed. Pillow's decoders raise other errors too.
    """
    if (clear := _clear_level(image)) is not None:
        image.info["transparency"] = clear
    try:
        with _read_not_mapped(image):
            image.load()
    except (AssertionError, AttributeError) as error:  # Pillow's errors if the file is closed
        closed = "its file was closed before its pixels were read; call load() before, or give its path"
        raise ValueError(closed) from error


@contextmanager
def _read_not_mapped(image: Image.Image) -> Iterator[None]:
    """Make Pillow read the pixels of a TIFF instead of memory-mapping the file by its name.

    Pillow 13.0.0 would map rows with the width of the turned picture, and then turn them.
    """
    if not isinstance(image, TiffImageFile):
        yield
        return
    filename, image.filename = image.filename, ""
    try:
        yield
    finally:
        image.filename = filename


def _clear_level(image: Image.Image) -> int | tuple[int, ...] | None:
    """Return the transparent level or colour of a picture, in the scale of its pixels; None if there is none."""
    clear = image.info.get("transparency")
    tile = getattr(image, "tile", None)  # only an unloaded picture tells the number of bits in its file
    raw = tile[0].args if image.format == "PNG" and tile else ""
    if isinstance(clear, int):
        return clear * _SPREAD.get(raw, 1)
    if isinstance(clear, tuple) and (raw == "RGB;16B" or max(clear) > 255):
        return tuple(level >> 8 for level in clear)
    return clear if isinstance(clear, tuple) else None


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception as error:  # broken metadata: viewers show such a picture as it is stored
        if is_machine_error(error):
            raise
        return image
    if orientation not in _UPRIGHT:
        return image
    turned = image.transpose(_UPRIGHT[orientation])
    # The orientation tag is dropped, or the picture would be turned again later.
    turned.info = {name: value for name, value in image.info.items() if name == "transparency"}
    return turned


def _stripes(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield the first row of each stripe of a picture, and the stripe."""
    rows = max(1, _STRIPE // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _in_stripes(image: Image.Image, rgb_of: Callable[[Image.Image], Image.Image]) -> Image.Image:
    whole = Image.new("RGB", image.size)
    for top, stripe in _stripes(image):
        whole.paste(rgb_of(stripe), (0, top))
    return whole


def _on_white(image: Image.Image) -> Image.Image:
    # Pillow converts La to colours only by way of LA.
    image = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _scaled(
    image: Image.Image, white: int, *, or_less: int, clear: int | tuple[int, ...] | None = None
) -> Image.Image:
    """Return a grey picture of more than eight bits as RGB, on white where it has the level ``clear``.

    ``convert`` would clip it at 255. White is ``or_less`` if no value is larger. float32 rounds like exact arithmetic,
    because a 16-bit level is at least 1 / 514 away from a tie.
    """
    ends = [(values.min(), values.max()) for _, stripe in _stripes(image) for values in [np.asarray(stripe)]]
    least, most = np.min(ends), np.max(ends)
    if not (least >= 0 and most <= white):  # written this way, NaN is refused too
        raise ValueError(f"values from {least:g} to {most:g}; wanted 0 to {white}")
    scale = np.float32(255 / (or_less if most <= or_less else white))

    def rgb_of(stripe: Image.Image) -> Image.Image:
        values = np.asarray(stripe)
        grey = np.rint(values.astype(np.float32) * scale).astype(np.uint8)
        return Image.fromarray(grey if clear is None else np.where(values == clear, np.uint8(255), grey)).convert("RGB")

    return _in_stripes(image, rgb_of)
