"""Random parts of pictures, for training."""

from __future__ import annotations

import math
import random

from PIL import Image

# As torchvision's RandomResizedCrop.
_ASPECT_RATIOS = (3 / 4, 4 / 3)
_CROPS_TRIED = 10


def random_square(image: Image.Image, side: float, size: int, draw: random.Random, *, flip: bool) -> Image.Image:
    """Return a square of a picture, anywhere in it, resized to ``size``.

    Args:
        image: an RGB picture.
        side: side of the square in the picture's pixels, at most its short side.
        size: side of the result.
        draw: gives the place, then whether the result is mirrored.
        flip: whether half of the results are mirrored.
    """
    left, top = draw.uniform(0, image.width - side), draw.uniform(0, image.height - side)
    # reducing_gap: a box filter first where the square is much larger than the result, as the published loaders do.
    square = image.resize(
        (size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side), reducing_gap=2.0
    )
    return square.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip and draw.random() < 0.5 else square


def random_crop(width: int, height: int, smallest: float, draw: random.Random) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) of a random part of a picture.

    Its area is a share of the picture's, uniform from ``smallest`` to 1; the logarithm of its sides' ratio is uniform
    between those of 3:4 and 4:3; its place is uniform. After ten draws that do not fit, it is the largest centred part
    of an allowed ratio.

    Source: torchvision, transforms.RandomResizedCrop, which open_clip and TokLIP train with.

    >>> random_crop(300, 200, 1.0, random.Random(0))
    (16, 0, 283, 200)
    """
    low, high = _ASPECT_RATIOS
    for _ in range(_CROPS_TRIED):
        area = width * height * draw.uniform(smallest, 1)
        ratio = math.exp(draw.uniform(math.log(low), math.log(high)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = draw.randint(0, width - w), draw.randint(0, height - h)
            return left, top, left + w, top + h
    w, h = min(width, round(height * high)), min(height, round(width / low))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
