"""Removal of long texts and profiles from PNG files; Pillow refuses files that have more than 1 MB of them."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import IO

from PIL.PngImagePlugin import MAX_TEXT_CHUNK

_SIGNATURE = 8
# Texts that may contain the orientation: Exif as ImageMagick writes it, and XMP.
_ORIENTATION = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")


def refused_for_its_texts(error: Exception) -> bool:
    """Return whether an error is Pillow's refusal of a PNG with too much text."""
    return isinstance(error, ValueError) and "MAX_TEXT_" in str(error)  # MAX_TEXT_CHUNK of one, MAX_TEXT_MEMORY of all


def without_texts(file: IO[bytes]) -> BytesIO:
    """Return a PNG without its colour profile and texts, except for texts that contain the orientation.

    A text above Pillow's limit is always removed. Damaged data is kept for Pillow to report.
    """
    kept = BytesIO()
    kept.write(file.read(_SIGNATURE))
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        data = file.read(length + 4)  # with its checksum
        if kind == b"iCCP" or (kind in (b"tEXt", b"zTXt", b"iTXt") and not _says_how_it_lies(kind, data)):
            continue
        kept.write(head + data)
    kept.write(head)
    kept.seek(0)
    return kept


def _says_how_it_lies(kind: bytes, data: bytes) -> bool:
    key = next((key for key in _ORIENTATION if data.startswith(key)), b"")
    if not key:
        return False
    rest = data[len(key) : -4]
    if kind == b"tEXt" or (kind == b"iTXt" and rest[:1] == b"\0"):
        return len(rest) <= MAX_TEXT_CHUNK
    packed = rest[1:] if kind == b"zTXt" else rest[2:].split(b"\0", 2)[-1]
    inflater = zlib.decompressobj()
    try:
        inflater.decompress(packed, MAX_TEXT_CHUNK)
    except zlib.error:
        return False
    return not inflater.unconsumed_tail
