"""The page of `toklip demo`: one HTML file that loads nothing, light or dark as the reader's browser is.

page.html beside this file is a template of jinja2, which escapes all values.
"""

from __future__ import annotations

import base64
import mimetypes
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, StrictUndefined
from PIL import Image

from toklip_core.demo.chapters import PHOTOGRAPH, ROW, SCENE, STORE, Chapter, Figure
from toklip_core.store import TokenStore


@dataclass(frozen=True)
class ChapterOnPage:
    """A chapter that was run, as the template reads it."""

    chapter: Chapter
    #: What each command printed; none if packages are missing.
    outputs: tuple[str, ...]
    missing: tuple[str, ...]
    #: The folder of the pictures.
    folder: Path

    @property
    def calls(self) -> list[tuple[tuple[str, ...], str]]:
        """The words of each command, and what it printed."""
        return list(zip(self.chapter.commands, self.outputs, strict=True))

    @cached_property
    def pictures(self) -> list[PictureOnPage]:
        """The pictures, with their bytes; none if packages are missing."""
        return [] if self.missing else [picture_on_page(shown, self.folder) for shown in self.chapter.pictures]


class PictureOnPage(NamedTuple):
    """A picture with its bytes."""

    caption: str
    #: The address of its bytes: ``data:image/...``.
    data: str
    width: int
    height: int
    #: Whether it has few pixels, and is enlarged without smoothing.
    small: bool
    #: Whether it takes the whole width of the page.
    wide: bool


class Cell(NamedTuple):
    """An id of the scene."""

    id: int
    #: Mean colour of what it gives back.
    colour: tuple[int, int, int]
    #: Colour of the number on it.
    ink: str


def page_of(chapters: Sequence[ChapterOnPage], folder: Path, *, seconds: float) -> str:
    """Return the HTML of chapters; the pictures that they show are in the folder."""
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    template = environment.from_string(files("toklip_core.demo").joinpath("page.html").read_text("utf-8"))
    named = {one.chapter.name: one for one in chapters}
    labels = "".join(named["classify"].outputs).splitlines()
    return template.render(
        named=named,
        cells=[] if named["scene"].missing else cells_of_scene(folder),
        labels=[line.split(maxsplit=1)[::-1] for line in labels if "%" in line],
        shown_command=lambda words: shlex.join(["toklip", *words]),
        version=version("toklip-core"),
        seconds=seconds,
        photograph=PHOTOGRAPH,
    )


def cells_of_scene(folder: Path) -> list[list[Cell]]:
    """Return the ids of the scene, row by row."""
    ids = TokenStore(folder / STORE)[ROW].ids[..., 0]
    with Image.open(folder / f"decoded/{SCENE}.png") as picture:
        colours = picture.convert("RGB").resize((ids.shape[1], ids.shape[0]), Image.Resampling.BOX)
    return [
        [_cell(number, colours.getpixel((x, y))) for x, number in enumerate(row)] for y, row in enumerate(ids.tolist())
    ]


def picture_on_page(shown: Figure, folder: Path) -> PictureOnPage:
    """Return a picture of the folder with its bytes, enlarged to about 256 pixels if it is small."""
    path = folder / shown.path
    with Image.open(path) as image:
        width, height = image.size
    scale = max(1, round(256 / height)) if shown.small else 1
    kind = mimetypes.types_map.get(path.suffix, "image/webp")
    data = f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    return PictureOnPage(shown.caption, data, width * scale, height * scale, shown.small, path.suffix == ".webp")


def _cell(number: int, colour: object) -> Cell:
    assert isinstance(colour, tuple)
    red, green, blue = colour
    return Cell(number, (red, green, blue), "#000" if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else "#fff")
