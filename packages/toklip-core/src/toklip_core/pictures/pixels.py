"""Conversion of RGB pictures to squares and pixels, and back."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from toklip_core.pictures.limit import cropped
from toklip_core.weights import refuse_not_finite

Resize = Literal["crop", "squash", "pad"]

# Between black and white: about 0 in [-1, 1].
_GREY = (127, 127, 127)
# Ratio of the sides above which the far ends, which a centre crop discards, are cut off before resizing.
_LONGEST_CROPPED = 8


def resized(image: Image.Image, size: int, resize: Resize = "crop") -> Image.Image:
    """Return an RGB picture as a square of side ``size``.

    ``crop`` takes the centre square, ``squash`` changes the ratio of the sides, and ``pad`` adds grey to the short
    side. ``crop`` is ADM's method, which LlamaGen and many published figures use: it halves with a box filter while
    the short side is at least twice the size, then resizes bicubically, then cuts. ``pad`` is Janus's: it resizes
    bicubically and rounds the short side down; the grey, 127, is close to 0 in [-1, 1].

    Source: openai/guided-diffusion, guided_diffusion/image_datasets.py, center_crop_arr; deepseek-ai/Janus,
    janus/models/image_processing_vlm.py, resize and expand2square.

    Raises:
        ValueError: ``resize`` is another word.

    >>> wide = Image.new("RGB", (300, 100))
    >>> resized(wide, 64).size, resized(wide, 64, "squash").size
    ((64, 64), (64, 64))
    >>> resized(wide, 64, "pad").getpixel((0, 0)), resized(wide, 64, "pad").getpixel((0, 32))
    ((127, 127, 127), (0, 0, 0))
    """
    if resize == "squash":
        return image.resize((size, size), Image.Resampling.BICUBIC)
    if resize == "pad":
        return _padded(image, size)
    if resize != "crop":
        raise ValueError(f"got resize {resize!r}; known are 'crop', 'squash' and 'pad'")
    image = _without_far_ends(image)
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return cropped(image, (left, top, left + size, top + size))


def _padded(image: Image.Image, size: int) -> Image.Image:
    width, height = (max(1, side * size // max(image.size)) for side in image.size)
    square = Image.new("RGB", (size, size), _GREY)
    square.paste(image.resize((width, height), Image.Resampling.BICUBIC), ((size - width) // 2, (size - height) // 2))
    return square


def to_pixels(image: Image.Image, size: int, resize: Resize = "crop") -> Tensor:
    """Return an RGB picture as pixels (3, size, size), float32 in [-1, 1]. See :func:`resized`.

    >>> to_pixels(Image.new("RGB", (300, 100), "white"), 64)[:, 0, 0]
    tensor([1., 1., 1.])
    """
    return normalized(torch.from_numpy(np.array(resized(image, size, resize))).permute(2, 0, 1))


def normalized(rgb: Tensor) -> Tensor:
    """Return RGB values (..., uint8) as float32 in [-1, 1]: x / 127.5 - 1.

    >>> normalized(torch.tensor([0, 255], dtype=torch.uint8))
    tensor([-1.,  1.])
    """
    return rgb.float() / 127.5 - 1


def resample(pixels: Tensor, size: int) -> Tensor:
    """Return pixels (B, 3, H, W) as (B, 3, size, size): bicubic, antialiased and clamped, or as they are if they fit.

    For models that read another size than the pixels have; pictures in files become squares by :func:`resized`.

    >>> resample(torch.zeros(1, 3, 64, 64), 32).shape
    torch.Size([1, 3, 32, 32])
    """
    if pixels.shape[-2:] == (size, size):
        return pixels
    return F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)


def picture_to_rgb(picture: Image.Image | np.ndarray[Any, Any]) -> Tensor:
    """Return a picture, or its array (H, W, 3), as RGB values (3, H, W), uint8; see :func:`normalized`."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def refuse_pixels(pixels: Tensor) -> None:
    """Raise ValueError unless pixels (B, 3, H, W) are finite floating-point numbers; 8-bit values are not pixels.

    >>> refuse_pixels(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    Traceback (most recent call last):
    ValueError: got pixels of torch.uint8; wanted floating point in [-1, 1], which ...
    """
    if pixels.ndim != 4 or pixels.shape[1] != 3:
        raise ValueError(f"got pixels of shape {tuple(pixels.shape)}; wanted (B, 3, H, W)")
    if not pixels.is_floating_point():
        raise ValueError(
            f"got pixels of {pixels.dtype}; wanted floating point in [-1, 1], "
            "which toklip_core.pictures.normalized makes of 8-bit values"
        )
    refuse_not_finite(pixels, "a pixel", advice="wanted numbers in [-1, 1]")


def to_rgb(pixels: Tensor) -> Tensor:
    """Return pixels (B, 3, H, W), clamped to [-1, 1], as RGB values (B, 3, H, W), uint8; undoes :func:`normalized`.

    Raises:
        ValueError: a pixel is NaN or infinite, which would be black.
    """
    refuse_not_finite(pixels, "a pixel")
    return ((pixels.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_picture(pixels: Tensor) -> Image.Image:
    """Return pixels (3, H, W) as an 8-bit RGB picture; see :func:`to_rgb`.

    >>> to_picture(to_pixels(Image.new("RGB", (8, 8), "red"), 8)).getpixel((0, 0))
    (255, 0, 0)
    """
    return Image.fromarray(to_rgb(pixels[None])[0].permute(1, 2, 0).cpu().numpy())


def _without_far_ends(image: Image.Image) -> Image.Image:
    """Shorten a very long picture about its centre: a 1 x 9000 one would need 2 GB on its way to 256 x 256."""
    short, long = sorted(image.size)
    if long <= _LONGEST_CROPPED * short:
        return image
    kept = _LONGEST_CROPPED * short + (long - _LONGEST_CROPPED * short) % 2  # of the same parity, so the centre stays
    cut = (long - kept) // 2
    if image.width == long:
        return cropped(image, (cut, 0, cut + kept, short))
    return cropped(image, (0, cut, short, cut + kept))
