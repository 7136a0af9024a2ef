"""Pictures that are read only when they are needed, with their captions or labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from PIL import Image

from toklip_core.devices import progress_bar
from toklip_core.pictures.find import Source, count_of, entries


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


def found_pictures(sources: Sequence[Source], *, progress: bool = False) -> list[Picture]:
    """Return the pictures of files, archives and scenes, unread.

    Args:
        sources: what :func:`find_pictures` returned.
        progress: show a bar on stderr; the headers of a large tar take a while to read.
    """
    found: list[Picture] = []
    with progress_bar(count_of(sources), shown=progress, unit="pictures found") as bar:
        for entry in entries(sources):
            found.append(Picture(entry.key if entry.member else str(entry.path), entry.image))
            bar.update()
    return found


class Captioned(NamedTuple):
    """A picture, unread, and its captions, one or more."""

    picture: Picture
    captions: Sequence[str]
