"""Sheets of pictures with titles, side by side and in rows, which commands draw for people to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from toklip_core.files import replacing

#: Side of each panel, in pixels.
PANEL_SIDE = 512
#: Gap between and around panels, and gap between a title and its panel.
MARGIN, PANEL_GAP = 24, 8

_COLUMNS = 3
_FONT = 20
_INK = (20, 20, 20)

_Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def picture_sheet(
    titles: Sequence[str],
    panels: Sequence[Image.Image],
    *,
    columns: int | None = None,
    below: Image.Image | None = None,
) -> Image.Image:
    """Return a sheet of panels in rows, and a strip below them.

    Each panel is a square of side PANEL_SIDE with its title above it.

    Args:
        titles: title of each panel; long ones are broken into lines.
        panels: one or more pictures.
        columns: panels per row; None: three, or four panels in a square.
        below: strip such as a legend, at most as wide as :func:`sheet_width`.
    """
    columns, width = columns or _columns(len(panels)), sheet_width(len(panels), columns)
    parts = [
        _row(titles[start : start + columns], panels[start : start + columns], width)
        for start in range(0, len(panels), columns)
    ]
    if below is not None:
        parts.append(below)
    canvas = Image.new("RGB", (width + 2 * MARGIN, sum(part.height + MARGIN for part in parts) + MARGIN), "white")
    top = MARGIN
    for part in parts:
        canvas.paste(part, (MARGIN, top))
        top += part.height + MARGIN
    return canvas


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture atomically, in the format of the path's suffix."""
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise ValueError(f"got {str(path)!r}; wanted the name of a picture, such as {path.stem}.png")
    with replacing(path) as beside:
        picture.save(beside, kind, quality=95)


def sheet_width(panels: int, columns: int | None = None) -> int:
    """Return the width in pixels of :func:`picture_sheet` with this number of panels, without margins."""
    return (columns or _columns(panels)) * (PANEL_SIDE + MARGIN) - MARGIN


def wrapped_lines(text: str, font: _Font, width: int) -> list[str]:
    """Return a text as lines of at most ``width`` pixels; words that are longer are broken."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return [line for line in lines if line]


def write_lines(
    pen: ImageDraw.ImageDraw, place: tuple[int, int], lines: Sequence[str], font: _Font, ink: tuple[int, int, int]
) -> None:
    """Write lines below each other, from a place on."""
    for number, line in enumerate(lines):
        pen.text((place[0], place[1] + number * line_height(font)), line, ink, font)


def line_height(font: _Font) -> int:
    """Return the distance between two lines in pixels."""
    _, top, _, bottom = font.getbbox("Åg")
    return int(bottom - min(top, 0)) + 4


def _row(titles: Sequence[str], panels: Sequence[Image.Image], width: int) -> Image.Image:
    """Return panels side by side, each below its title."""
    font = ImageFont.load_default(_FONT)
    lines = [wrapped_lines(title, font, PANEL_SIDE) for title in titles]
    above = max(map(len, lines)) * line_height(font) + PANEL_GAP
    row = Image.new("RGB", (width, above + PANEL_SIDE), "white")
    pen = ImageDraw.Draw(row)
    for column, (words, panel) in enumerate(zip(lines, panels, strict=True)):
        left = column * (PANEL_SIDE + MARGIN)
        write_lines(pen, (left, above - PANEL_GAP - len(words) * line_height(font)), words, font, _INK)
        row.paste(panel, (left, above))
    return row


def _columns(panels: int) -> int:
    return 2 if panels == 4 else min(_COLUMNS, panels)
