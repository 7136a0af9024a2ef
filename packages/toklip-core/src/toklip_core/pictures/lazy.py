"""Pictures that are read only when they are needed, with their captions or labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from PIL import Image

from toklip_core.pictures.find import Source, entries


class LabelledPictures(NamedTuple):
    """Pictures with their classes."""

    #: Of the classes, all of them candidates. Some may be equal, as those of two pairs of ImageNet's are.
    names: Sequence[str]
    pictures: Sequence[Picture]
    #: For each picture, a place in ``names``.
    labels: Sequence[int]


class Picture(NamedTuple):
    """A picture that is named and not yet read."""

    name: str
    #: Returns it as RGB, or raises a PictureError.
    read: Callable[[], Image.Image]


def found_pictures(sources: Iterable[Source]) -> list[Picture]:
    """Return the pictures of files and tars, unread."""
    found = entries(sources)
    return [Picture(entry.key if entry.member else str(entry.path), entry.image) for entry in found]


class Captioned(NamedTuple):
    """A picture, unread, and its captions, one or more."""

    picture: Picture
    captions: Sequence[str]
