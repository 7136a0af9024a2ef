"""Pictures that are read only when they are needed, with their captions or labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from PIL import Image

from toklip_core.config import progress_bar
from toklip_core.pictures.find import InputFile, count_of, entries, printable


class LabelledPictures(NamedTuple):
    """Pictures with their classes."""

    #: Names of all classes. Some may be equal, as in two pairs of ImageNet's classes.
    names: Sequence[str]
    pictures: Sequence[LazyPicture]
    #: Class of each picture, as an index into ``names``.
    labels: Sequence[int]


class LazyPicture(NamedTuple):
    """A named picture that is read on demand."""

    name: str
    #: Function that returns the picture as RGB, or raises PictureError.
    read: Callable[[], Image.Image]


def list_pictures(sources: Sequence[InputFile], *, progress: bool = False) -> list[LazyPicture]:
    """Return the pictures of files, archives and scenes without reading them.

    Args:
        sources: result of :func:`find_pictures`.
        progress: show a progress bar on stderr; reading the headers of a large tar takes a while.
    """
    found: list[LazyPicture] = []
    with progress_bar(count_of(sources), shown=progress, unit="pictures found") as bar:
        for entry in entries(sources):
            found.append(LazyPicture(entry.key if entry.member else printable(str(entry.path)), entry.image))
            bar.update()
    return found


class LazyPair(NamedTuple):
    """A picture that is read on demand, with one or more captions."""

    picture: LazyPicture
    captions: Sequence[str]
