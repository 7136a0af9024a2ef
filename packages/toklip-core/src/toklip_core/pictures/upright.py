"""Pictures of any mode as 8-bit RGB: orientation, transparency, and more than eight bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from toklip_core.pictures.png_texts import refused_for_its_texts

_EXIF_ORIENTATION = 0x0112
# Exif 2.32, table "Orientation": what brings the stored rows and columns back upright. Not ImageOps.exif_transpose: it
# copies pictures that need no turn, and leaves them unturned if another tag of theirs cannot be written again.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pixels that are converted at a time: what an intermediate copy costs.
_STRIPE = 2**18
# How many levels of eight bits lie between two of a PNG of so few bits, which Pillow spreads, but not the level that
# the file calls transparent.
_SPREAD = {"L;2": 85, "L;4": 17}


def upright_rgb(image: Image.Image) -> Image.Image:
    """Return a picture upright, 8-bit RGB, on white where it is transparent; itself if it is that already.

    White is 65535 in 16 bits and 1 in floats. 32-bit integers do not tell theirs, unless their format does: it is 255
    if no value is above, else 65535.

    Pass a TIFF that lies on its side before it is loaded: Pillow 13.0.0 scrambles some as it loads them by their path.

    Beside the picture that Pillow decoded this takes 4 bytes a pixel, and as much again if it is turned.

    Raises:
        ValueError: values that are not in the range from black to white, or the picture's file was closed before its
            pixels were read. A damaged file raises what Pillow's decoders raise.
    """
    try:
        load_pixels(image)  # first: from then on a TIFF is upright and says so
    except ValueError as error:
        if not refused_for_its_texts(error):
            raise
        image.load()  # the pixels are there: the text came behind them
    clear = image.info.get("transparency")
    tells_white = image.mode != "I" or image.format not in (None, "TIFF")  # Pillow makes 16 bits of other formats' "I"
    image = _upright(image)
    if image.mode.startswith("I"):
        return _scaled(image, 65535, or_less=65535 if tells_white else 255, clear=clear)
    if image.mode == "F":
        return _scaled(image, 1, or_less=1)
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    return _in_stripes(image, _on_white)


def load_pixels(image: Image.Image) -> None:
    """Read a picture's pixels, if they are not read yet, and correct the level that it calls transparent.

    Raises:
        ValueError: the picture's file was closed; and what Pillow's decoders raise.
    """
    if (clear := _clear_level(image)) is not None:
        image.info["transparency"] = clear
    try:
        with _read_not_mapped(image):
            image.load()
    except (AssertionError, AttributeError) as error:  # Pillow looks for a file where there is none
        closed = "its file was closed before its pixels were read; call load() before, or give its path"
        raise ValueError(closed) from error


@contextmanager
def _read_not_mapped(image: Image.Image) -> Iterator[None]:
    """Have Pillow read a TIFF's pixels, where it would map its file into memory by its name.

    It would map rows of the size that the picture has when it is turned, and then turn them (Pillow 13.0.0).
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
    """The level or colour that a picture's file calls transparent, as the pixels have it; None if there is none."""
    clear = image.info.get("transparency")
    tile = getattr(image, "tile", None)  # only a picture that is not loaded yet says of how many bits its file is
    raw = tile[0].args if image.format == "PNG" and tile else ""
    if isinstance(clear, int):
        return clear * _SPREAD.get(raw, 1)
    if isinstance(clear, tuple) and (raw == "RGB;16B" or max(clear) > 255):
        return tuple(level >> 8 for level in clear)
    return clear if isinstance(clear, tuple) else None


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # broken metadata of a picture that can be seen: viewers show it as it is stored
        return image
    if orientation not in _UPRIGHT:
        return image
    turned = image.transpose(_UPRIGHT[orientation])
    # Not with the metadata that asked for it: who passes the picture on would turn it again.
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
    image = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")  # no way leads from La to colours
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _scaled(
    image: Image.Image, white: int, *, or_less: int, clear: int | tuple[int, ...] | None = None
) -> Image.Image:
    """Return a grey picture of more than eight bits as RGB, on white where it has the level ``clear``.

    ``convert`` would clip it at 255. White is the lesser number if no value is above it. float32 rounds as exact
    arithmetic does: a 16-bit level lies at least 1 / 514 from a tie.
    """
    ends = [(levels.min(), levels.max()) for _, stripe in _stripes(image) for levels in [np.asarray(stripe)]]
    least, most = np.min(ends), np.max(ends)
    if not (least >= 0 and most <= white):  # so written, NaN is refused too
        raise ValueError(f"values from {least:g} to {most:g}; wanted 0 to {white}")
    scale = np.float32(255 / (or_less if most <= or_less else white))

    def rgb_of(stripe: Image.Image) -> Image.Image:
        levels = np.asarray(stripe)
        grey = np.rint(levels.astype(np.float32) * scale).astype(np.uint8)
        return Image.fromarray(grey if clear is None else np.where(levels == clear, np.uint8(255), grey)).convert("RGB")

    return _in_stripes(image, rgb_of)
