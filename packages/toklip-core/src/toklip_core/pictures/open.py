"""Reading of pictures, from files and of scenes, as upright 8-bit RGB."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

from toklip_core.config import MAX_PIXELS
from toklip_core.files import is_machine_error, refuse_special
from toklip_core.pictures.limit import pillow_limit
from toklip_core.pictures.png_texts import refused_for_its_texts, without_texts
from toklip_core.pictures.upright import load_pixels, upright_rgb
from toklip_core.scenes import Scenes, parse_scenes

# Readers that only decode pixels. Pillow has others, such as its EPS reader, which starts Ghostscript on the file.
_FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "JPEGXL", "JXL", "MPO", "PNG", "PPM", "TIFF", "WEBP")


class PictureError(ValueError):
    """A picture cannot be read; the message says why."""


#: Errors for which a command that reads many pictures lists one as unreadable: it is at fault, or the machine fails.
READING_ERRORS = (PictureError, OSError, MemoryError)


def open_picture(source: Path | str | IO[bytes], *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read a picture as people see it: upright, 8-bit RGB, its first frame, on white where it is transparent.

    :func:`toklip_core.pictures.upright_rgb` says which value is white in pictures of more than eight bits. Colour
    profiles are not applied, as in torchvision and in the published tokenizers' own loaders.

    Args:
        source: path, file open for reading bytes, or as text one scene, see :func:`toklip_core.scenes.parse_scenes`.
        max_pixels: width times height above which the picture is refused before it is decoded.

    Raises:
        MemoryError, OSError: the machine fails: no memory is left, too many files are open, the disk has an error.
        PictureError: the file is missing, is not a picture, is cut short or too large, or its values have no known
            white; there are no such scenes, or several.

    >>> open_picture("docs/examples/photographs/cat.jpg").mode
    'RGB'
    >>> open_picture("scenes:held-out?count=1&seed=7").size
    (64, 64)
    """
    if isinstance(source, str) and (scenes := _scenes_of(source)) is not None:
        return open_scene(scenes, 0, max_pixels=max_pixels)
    if isinstance(source, Path | str):
        try:
            refuse_special(source)
        except OSError as error:
            raise PictureError(str(error)) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about odd metadata, and about sizes, which max_pixels limits
        # Decoders raise too many kinds of errors to list: OSError, SyntaxError, struct.error, ...
        try:
            # Not by its path: Pillow would memory-map some files, and so scramble a rotated TIFF.
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
            if is_machine_error(error):  # the next call may read it
                raise
            known = "no picture in a format that is known here" if isinstance(error, UnidentifiedImageError) else None
            words = known or getattr(error, "strerror", None) or " ".join(str(error).split())
            raise PictureError(words or type(error).__name__) from error


def open_scene(scenes: Scenes, index: int, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Draw a scene; PictureError if it has more than ``max_pixels`` pixels."""
    if scenes.size**2 > max_pixels:
        raise PictureError(f"a scene of {scenes.size} px has more than {max_pixels} pixels")
    return Image.fromarray(scenes[index].rgb)


def _scenes_of(text: str) -> Scenes | None:
    """Return the one scene that a text names, None if it is a path."""
    try:
        scenes = parse_scenes(text)
    except ValueError as error:
        raise PictureError(str(error)) from error
    if scenes is not None and len(scenes) != 1:
        raise PictureError(f"it names {len(scenes)} scenes; wanted one picture, such as scenes:held-out?count=1&seed=7")
    return scenes


def _read(file: IO[bytes], max_pixels: int) -> Image.Image:
    advice = f"are more than the limit of {max_pixels}; raise max_pixels (--max-pixels)"
    try:
        with pillow_limit(max_pixels):
            image = Image.open(file, formats=_formats())
    except Image.DecompressionBombError as error:
        raise PictureError(f"its pixels {advice}") from error
    with image:
        width, height = image.size
        if width * height > max_pixels:
            raise PictureError(f"{width} x {height} pixels {advice}")
        load_pixels(image)
        return upright_rgb(image)


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)
