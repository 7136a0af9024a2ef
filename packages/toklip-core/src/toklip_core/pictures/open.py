"""A picture file into an upright 8-bit RGB picture."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

from toklip_core.files import refuse_special
from toklip_core.pictures.png_texts import refused_for_its_texts, without_texts
from toklip_core.pictures.upright import load_pixels, upright_rgb
from toklip_core.ranges import MAX_PIXELS

# Readers of pixel data only. Pillow's list has others: its EPS reader starts Ghostscript on the file.
_FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "JPEGXL", "JXL", "MPO", "PNG", "PPM", "TIFF", "WEBP")

# Held while Pillow's own limit is another: it is one for all threads.
_PILLOW = threading.Lock()


class PictureError(ValueError):
    """A picture that cannot be read, and why."""


def open_picture(source: Path | str | IO[bytes], *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read a picture as people see it: upright, 8-bit RGB, its first frame, on white where it is transparent.

    What is white in pictures of more than eight bits, :func:`toklip_core.pictures.upright_rgb` says. Colour profiles
    are not applied, as in torchvision and in the published tokenizers' own loaders.

    Args:
        source: a path, or a file open for reading bytes.
        max_pixels: width times height above which the picture is refused before it is decoded.

    Raises:
        PictureError: the file is missing, no picture, cut short, too large, or has values without a known white.

    >>> open_picture("docs/examples/photographs/cat.jpg").mode
    'RGB'
    """
    if isinstance(source, Path | str):
        try:
            refuse_special(source)
        except OSError as error:
            raise PictureError(str(error)) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata, and on sizes that max_pixels judges
        # What decoders raise on a stranger's bytes cannot be listed: OSError, SyntaxError, struct.error, ...
        try:
            # Not by its path: Pillow would map some files into memory, and so scramble a TIFF that lies on its side.
            with nullcontext(source) if not isinstance(source, Path | str) else Path(source).open("rb") as file:
                try:
                    return _read(file, max_pixels)
                except ValueError as error:
                    if not refused_for_its_texts(error):
                        raise
                file.seek(0)
                return _read(without_texts(file), max_pixels)
        except PictureError:
            raise
        except Exception as error:
            known = "no picture in a format that is known here" if isinstance(error, UnidentifiedImageError) else None
            words = known or getattr(error, "strerror", None) or " ".join(str(error).split())
            raise PictureError(words or type(error).__name__) from error


def _read(file: IO[bytes], max_pixels: int) -> Image.Image:
    with _pillows_limit(max_pixels):
        image = Image.open(file, formats=_formats())
    with image:
        width, height = image.size
        if width * height > max_pixels:
            raise PictureError(
                f"{width} x {height} pixels are more than the limit of {max_pixels}; raise max_pixels (--max-pixels)"
            )
        load_pixels(image)
        return upright_rgb(image)


@contextmanager
def _pillows_limit(max_pixels: int) -> Iterator[None]:
    """Let Pillow open what a caller allows: it refuses by itself what is above twice its own number."""
    with _PILLOW:
        before = Image.MAX_IMAGE_PIXELS
        if before is not None:
            Image.MAX_IMAGE_PIXELS = max(before, max_pixels)
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)
