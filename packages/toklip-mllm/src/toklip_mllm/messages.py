"""Messages of chat templates: their contents as texts, and the pictures that are in them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from toklip_core.characters import replace_lone_surrogates

#: What a picture may be given as: a file, or a picture of Pillow.
Picture = Image.Image | Path | str

#: Where transformers' messages may have a picture.
_KEYS = ("image", "path", "url")
_ADDRESS = re.compile(r"\w+://|data:")


def flattened(messages: Sequence[Mapping[str, Any]], image_token: str) -> tuple[list[dict[str, Any]], list[Picture]]:
    """Return messages whose contents are texts, with ``image_token`` where a picture goes, and the pictures.

    A line ends after a picture that text follows, as in LLaVA's prompts.

    Raises:
        ValueError: a part of a message is neither text nor picture, or a picture is no file.
    """
    flat, pictures = [], []
    for message in messages:
        content = message.get("content")
        if isinstance(content, Sequence) and not isinstance(content, str):
            text = ""
            for part in content:
                if part.get("type") == "image":
                    pictures += _picture_of(part)
                    text += image_token
                elif part.get("type") == "text":
                    line_ends = text.endswith(image_token) and not part["text"][:1].isspace()
                    text += ("\n" if line_ends else "") + part["text"]
                else:
                    raise ValueError(f"got a part of type {part.get('type')!r} in a message; known are image and text")
            content = text
        flat.append({**message, "content": replace_lone_surrogates(content) if isinstance(content, str) else content})
    return flat, pictures


def _picture_of(part: Mapping[str, Any]) -> list[Picture]:
    """The picture of a part; none if it stands elsewhere, beside the messages or as ids."""
    found = [part[key] for key in _KEYS if part.get(key) is not None][:1]
    for picture in found:
        if isinstance(picture, str) and _ADDRESS.match(picture):
            raise ValueError(f"got the picture {picture[:80]!r}; download it first, and give the file")
    return found
