"""Pillow's own limit of pixels, lifted where this package has checked the size of a picture itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

# Held while the limit is changed, because all threads share it.
_PILLOW = threading.Lock()


@contextmanager
def pillow_limit(max_pixels: int) -> Iterator[None]:
    """Raise Pillow's own limit to at least ``max_pixels`` while inside; it refuses what has more than twice as many."""
    with _PILLOW:
        before = Image.MAX_IMAGE_PIXELS
        if before is not None:
            Image.MAX_IMAGE_PIXELS = max(before, max_pixels)
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def cropped(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """Return the box (left, top, right, bottom) of a picture, also where Pillow refuses so large a crop."""
    with pillow_limit((box[2] - box[0]) * (box[3] - box[1])):
        return image.crop(box)
