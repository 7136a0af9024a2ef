"""Pictures in any form that the processor accepts, and their conversion to Pillow pictures."""

from __future__ import annotations

import base64
import binascii
import io
import os
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes
from urllib.request import Request, urlopen

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from toklip_core.config import MAX_PIXELS
from toklip_core.files import one_line
from toklip_core.pictures import open_picture, upright_rgb
from torch import Tensor

#: Path or address of a file, a scene as text, data URI, base64 or bytes of a file, Pillow picture, or array of values.
PictureInput = Image.Image | Path | str | bytes | NDArray[Any] | Tensor

#: Seconds to wait for an address to answer.
_PATIENCE = 60

#: Largest number of letters in a file's name on most systems.
_LONGEST_NAME = 255

#: Largest number of bytes to download; a larger picture would have too many pixels anyway.
_LARGEST = 2**29


def to_list(
    images: PictureInput | Sequence[PictureInput] | Sequence[Sequence[PictureInput]],
) -> tuple[list[PictureInput], list[int] | None]:
    """Return all pictures in reading order, and the lengths of inner lists, or None if there are none.

    A single picture counts as a list, and an array of four dimensions is a batch of pictures.
    """
    if not isinstance(images, list | tuple):
        return _batch(images), None
    if not any(isinstance(some, list | tuple) for some in images):
        return [one for some in images for one in _batch(some)], None
    nested = [to_list(some)[0] for some in images]
    return [one for some in nested for one in some], [len(some) for some in nested]


def to_image(picture: PictureInput, *, fetch: bool = False, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return a picture as people see it; see :func:`toklip_core.pictures.open_picture`.

    Args:
        picture: picture in any form. Arrays are (H, W), (H, W, C) or (C, H, W) with C = 1, 3 or 4. Integers are values
            from 0 to 255; floats are such values too if one is above 1, and otherwise lie in [0, 1].
        fetch: whether to download a picture given by address (http or https); otherwise no network is used.
        max_pixels: maximum pixels of a picture, see :func:`toklip_core.pictures.open_picture`.

    Raises:
        ValueError: the picture cannot be read; the message says why, but does not name the picture.
        OSError: the download failed.
    """
    if isinstance(picture, Image.Image):
        return upright_rgb(picture)
    if isinstance(picture, np.ndarray | Tensor):
        return upright_rgb(_of_values(picture))
    if isinstance(picture, bytes | bytearray):
        return open_picture(io.BytesIO(picture), max_pixels=max_pixels)
    if isinstance(picture, str):
        if picture.startswith(("http://", "https://")):
            return open_picture(io.BytesIO(_fetched(picture, fetch)), max_pixels=max_pixels)
        if picture.startswith("data:"):
            return open_picture(io.BytesIO(_data_of(picture)), max_pixels=max_pixels)
        # An existing file has precedence over base64. Otherwise a short text that is not base64 is a missing file.
        if not os.path.exists(picture) and (data := _from_base64(picture)):  # noqa: PTH110 - Path raises for a long one
            try:
                return open_picture(io.BytesIO(data), max_pixels=max_pixels)
            except ValueError:
                if len(picture) > _LONGEST_NAME:
                    raise
    if not isinstance(picture, str | Path):
        raise ValueError(f"got a {type(picture).__name__}; wanted a file, its bytes, a picture, an array or a tensor")
    return open_picture(picture, max_pixels=max_pixels)


def read_picture(
    picture: PictureInput, number: int, *, fetch: bool = False, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Return picture ``number`` of a list as :func:`to_image` does; its ValueErrors have the number and the name.

    The name is that of the file or the address, cut to 200 letters; arrays have none.
    """
    try:
        return to_image(picture, fetch=fetch, max_pixels=max_pixels)
    except (ValueError, OSError) as error:
        name = f" ({one_line(picture, longest=200)!r})" if isinstance(picture, str | Path) else ""
        raise ValueError(f"picture {number}{name} cannot be read: {error}") from error


def _batch(images: Any) -> list[PictureInput]:  # noqa: ANN401
    """Return the pictures of an entry: those of an array of four dimensions, none for None, else the entry itself."""
    if images is None:
        return []
    return list(images) if isinstance(images, np.ndarray | Tensor) and images.ndim == 4 else [images]


def _of_values(values: NDArray[Any] | Tensor) -> Image.Image:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()
    shape = values.shape
    array = values[None] if values.ndim == 2 else values
    if array.ndim != 3 or not array.size:
        raise ValueError(f"got values of shape {shape}; wanted (H, W), (H, W, C) or (C, H, W)")
    # As in transformers: if both orders are possible, channels come first.
    if array.shape[0] in (1, 3) or (array.shape[0] == 4 and array.shape[2] not in (1, 3, 4)):
        array = np.moveaxis(array, 0, -1)
    if array.shape[2] not in (1, 3, 4):
        raise ValueError(f"got values of shape {shape}; wanted 1, 3 or 4 channels, first or last")
    array = _bytes_of(array)
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def _bytes_of(values: NDArray[Any]) -> NDArray[np.uint8]:
    if values.dtype == bool:
        return np.ascontiguousarray(values * np.uint8(255))
    if values.dtype.kind not in "uif":
        raise ValueError(f"got values of {values.dtype}; wanted integers or floats")
    least, most = values.min(), values.max()
    if not (least >= 0 and most <= 255):  # written this way, NaN is refused too
        raise ValueError(f"got values from {least:g} to {most:g}; wanted integers from 0 to 255, or floats from 0 to 1")
    if values.dtype.kind == "f":
        values = np.rint(values.astype(np.float32) * np.float32(255 if most <= 1 else 1))
    return np.ascontiguousarray(values.astype(np.uint8))


def _fetched(address: str, fetch: bool) -> bytes:
    if not fetch:
        raise ValueError("nothing is fetched from a network unprompted; download it first, or give fetch=True")
    # Some hosts refuse requests without a user agent.
    try:
        with urlopen(Request(address, headers={"User-Agent": "toklip-mllm"}), timeout=_PATIENCE) as answer:
            data: bytes = answer.read(_LARGEST + 1)
    except HTTPException as error:  # such as an address with a space, or an answer that is none of HTTP
        raise OSError(f"{type(error).__name__}: {one_line(error, longest=200)}") from error
    if len(data) > _LARGEST:
        raise ValueError(f"the file is larger than {_LARGEST} bytes")
    return data


def _data_of(uri: str) -> bytes:
    head, comma, rest = uri.partition(",")
    raw = unquote_to_bytes(rest)
    data = _from_base64(raw.decode("latin-1")) if head.endswith(";base64") else raw
    if not comma or not data:
        raise ValueError("a data URI without data; wanted data:image/png;base64,... or the like")
    return data


def _from_base64(text: str) -> bytes | None:
    """Return the bytes that a base64 text stands for; None if it is not base64."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return None
