"""Pictures of any mode as 8-bit RGB: orientation, transparency, and more than eight bits."""

from __future__ import annotations

import numpy as np
from PIL import Image

_EXIF_ORIENTATION = 0x0112
# Exif 2.32, table "Orientation": what brings the stored rows and columns back upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def seen(image: Image.Image) -> Image.Image:
    """Return a decoded picture upright, 8-bit RGB, on white where it is transparent.

    White is 65535 in 16 bits and 1 in floats. 32-bit integers of a TIFF do not tell theirs: it is 255 if no value is
    above, else 65535.

    Raises:
        ValueError: values that are not in the range from black to white.
    """
    integers_of_a_tiff = image.format == "TIFF" and image.mode == "I"  # in other formats Pillow makes it of 16 bits
    image = _upright(image)
    if image.mode.startswith("I"):
        return _scaled(image, 65535, or_less=255 if integers_of_a_tiff else 65535)
    if image.mode == "F":
        return _scaled(image, 1, or_less=1)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # broken metadata of a picture that can be seen: viewers show it as it is stored
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _scaled(image: Image.Image, white: int, *, or_less: int) -> Image.Image:
    """Return a grey picture of more than eight bits as RGB. ``convert`` would clip it at 255.

    White is the lesser number if no value is above it. float32 rounds as exact arithmetic does: a 16-bit level lies at
    least 1 / 514 from a tie.
    """
    levels = np.array(image, np.float32)
    least, most = levels.min(), levels.max()
    if not (least >= 0 and most <= white):  # so written, NaN is refused too
        raise ValueError(f"values from {least:g} to {most:g}; wanted 0 to {white}")
    levels *= np.float32(255 / (or_less if most <= or_less else white))
    return Image.fromarray(np.rint(levels, out=levels).astype(np.uint8)).convert("RGB")
