"""Comparison of tokenizers on the same pictures, as ``toklip compare tokenizers`` does: one table and one sheet.

Each tokenizer has its own size of pictures, unless one is given for all. Figures at different sizes are not comparable
as they are, so the size is the first column beside the name.

Shape letters: h and w grid, Q levels, K codebook size of a level.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from toklip_core.config import Compute, refuse_missing_device
from toklip_core.evaluation.classes import refuse_duplicates
from toklip_core.evaluation.perceptual import LPIPSNet, require_evaluate_extra
from toklip_core.evaluation.reconstruction import ReconstructionReport, evaluate_sources, reconstruct_image
from toklip_core.evaluation.report import report_text
from toklip_core.pictures import (
    PANEL_SIDE,
    READING_ERRORS,
    InputFile,
    Resize,
    entries,
    find_pictures,
    line_height,
    picture_sheet,
    resized,
    sheet_width,
    wrapped_lines,
    write_lines,
)
from toklip_core.plugins import tokenizer_spec
from toklip_core.tokenizer import load_tokenizer

_FONT = 18
_FAINT = (90, 90, 90)


class ShownPicture(NamedTuple):
    """A picture, or its reconstruction, for the sheet."""

    name: str
    image: Image.Image


@dataclass(frozen=True, kw_only=True)
class ComparedTokenizer:
    """A tokenizer's row of the table."""

    #: The tokenizer as it was named: NAME, or NAME=WEIGHTS.
    label: str
    #: Side of the pictures that it was measured at.
    image_size: int
    #: Grid (h, w) of the ids of such a picture.
    grid: tuple[int, int]
    codebook_sizes: tuple[int, ...]
    #: Licence of the weights; empty if it is not known, as that of other weights than those of the name.
    licence: str
    report: ReconstructionReport
    #: Reconstructions of the pictures of the sheet, of ``image_size``.
    pictures: tuple[Image.Image, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the row as JSON data: the report of the reconstruction, and what the tokenizer is."""
        own = {
            "tokenizer": self.label,
            "image_size": self.image_size,
            "grid": list(self.grid),
            "codebook_sizes": list(self.codebook_sizes),
            "licence": self.licence,
        }
        return own | self.report.as_json()


@dataclass(frozen=True, kw_only=True)
class TokenizerComparison:
    """Tokenizers measured on the same pictures."""

    tokenizers: tuple[ComparedTokenizer, ...]
    #: First readable pictures, squares of the largest size.
    originals: tuple[ShownPicture, ...]
    #: Protocol of the measurement, as far as it is the same for all tokenizers.
    protocol: dict[str, str | int]
    #: Pictures that cannot be read, with the reason; no figure includes them.
    unreadable: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the comparison as JSON data: for each tokenizer the report of ``toklip evaluate reconstruction``."""
        return {"tokenizers": [one.as_json() for one in self.tokenizers]}

    def as_text(self) -> str:
        """Return the comparison as a table for people, with the protocol below it."""
        figures = [_HEADER, *(_figures(one) for one in self.tokenizers)]
        notes = []
        if len({one.image_size for one in self.tokenizers}) > 1:
            notes.append("Sizes differ: figures compare pictures of px x px with their reconstructions at that size.")
        left_out: dict[tuple[str, str], list[str]] = {}
        for one in self.tokenizers:
            for missing in one.report.left_out.items():
                left_out.setdefault(missing, []).append(one.label)
        for (name, reason), labels in left_out.items():
            of = "" if len(labels) == len(self.tokenizers) else f" of {', '.join(labels)}"
            notes.append(f"{name.upper()}{of} is left out (-): {reason}")
        return report_text(figures, self.protocol, self.unreadable, notes)


def compare_tokenizers(
    tokenizers: Sequence[str],
    inputs: Iterable[Path | str],
    *,
    image_size: int | None = None,
    resize: Resize = "crop",
    lpips: LPIPSNet = "alex",
    shown: int = 4,
    compute: Compute = Compute(),
) -> TokenizerComparison:
    """Measure tokenizers on the same pictures, one after another; see :func:`evaluate_tokenizer` for the figures.

    Args:
        tokenizers: distinct names of tokenizers, each alone or with its weights: NAME, or NAME=WEIGHTS.
        inputs: files, folders, globs, tars, scenes; see :func:`toklip_core.pictures.find_pictures`.
        image_size: side of the pictures; None: the side that each tokenizer was trained at.
        resize: way to make a picture square.
        lpips: backbone of LPIPS.
        shown: number of pictures on the sheet.
        compute: device, number of pictures at a time, and dtype of the tokenizers' networks.

    Raises:
        FileNotFoundError: an input or weights are not there.
        LookupError: no tokenizer has a name, or the extra is not installed.
        ValueError: no picture can be read, two tokenizers are named alike, or one does not take the size.
    """
    labels = refuse_duplicates(tokenizers, "tokenizer")
    inputs = list(inputs)
    require_evaluate_extra()
    refuse_missing_device(compute.device)
    named = [_named(label, image_size) for label in labels]  # all of them before the first is measured
    sources = find_pictures(inputs, max_pixels=compute.max_pixels)
    first = _first_pictures(sources, shown)
    found = [
        _compared(one, sources, first, size=image_size, resize=resize, lpips=lpips, compute=compute)
        for one in named
    ]
    protocols = [one.report.protocol for one in found]
    common = {key: value for key, value in protocols[0].items() if all(other.get(key) == value for other in protocols)}
    largest = max(one.image_size for one in found)
    return TokenizerComparison(
        tokenizers=tuple(found),
        originals=tuple(ShownPicture(name, resized(image, largest, resize)) for name, image in first),
        protocol={"inputs": " ".join(map(str, inputs)), **common},
        unreadable=found[0].report.unreadable,
    )


def draw_comparison(comparison: TokenizerComparison) -> Image.Image:
    """Return a sheet with a row per picture: the picture, and what each tokenizer makes of it, with a legend below."""
    titles: list[str] = []
    panels: list[Image.Image] = []
    for place, original in enumerate(comparison.originals):
        rows = [(original.name, original.image)]
        rows += [(one.label, one.pictures[place]) for one in comparison.tokenizers]
        titles += [title for title, _ in rows]
        panels += [resized(image, PANEL_SIDE) for _, image in rows]
    columns = 1 + len(comparison.tokenizers)
    legend = _legend(comparison.tokenizers, sheet_width(len(panels), columns))
    return picture_sheet(titles, panels, columns=columns, below=legend)


_HEADER = ("tokenizer", "px", "bits", "PSNR", "SSIM", "LPIPS", "rFID", "usage", "pictures/s", "licence")


def _figures(one: ComparedTokenizer) -> tuple[str, ...]:
    report = one.report
    return (
        one.label,
        str(one.image_size),
        f"{report.bits_per_picture:,.0f}",
        f"{report.psnr:.2f}",
        f"{report.ssim:.4f}",
        "-" if report.lpips is None else f"{report.lpips:.4f}",
        "-" if report.rfid is None else f"{report.rfid:.2f}",
        " ".join(f"{usage:.3g}%" for usage in (100 * level for level in report.codebook_usage)),
        f"{report.pictures_per_second:.3g}",
        one.licence or "-",
    )


class _NamedTokenizer(NamedTuple):
    label: str
    name: str
    weights: Path | None


def _named(label: str, image_size: int | None) -> _NamedTokenizer:
    """Return what a label names; raise an error for weights that are not there, or a size that the name does not take.

    Weights of one's own may have another factor than those of the name, so their tokenizer itself says whether it takes
    the size, when it is loaded. That the weights fit is not known before, either.
    """
    name, given, path = label.partition("=")
    spec = tokenizer_spec(name)
    if given and not Path(path).exists():
        raise FileNotFoundError(f"got {label!r}, but {path!r} is not there; wanted weights of the tokenizer {name!r}")
    spec.refuse_size(image_size)
    if image_size is not None and not given and spec.factor and image_size % spec.factor:
        raise ValueError(
            f"got the size {image_size}, but {name!r} takes multiples of {spec.factor} alone; give one that all "
            "tokenizers take, or leave out the size, and each has its own"
        )
    return _NamedTokenizer(label, name, Path(path) if given else None)


def _compared(
    named: _NamedTokenizer,
    sources: list[InputFile],
    first: list[ShownPicture],
    *,
    size: int | None,
    resize: Resize,
    lpips: LPIPSNet,
    compute: Compute,
) -> ComparedTokenizer:
    """Return the row of a tokenizer, which is in memory until then."""
    tokenizer = load_tokenizer(named.name, named.weights)
    size = tokenizer.image_size if size is None else size
    report = evaluate_sources(tokenizer, sources, image_size=size, resize=resize, lpips=lpips, compute=compute)
    return ComparedTokenizer(
        label=named.label,
        image_size=size,
        grid=tokenizer.grid(size, size),
        codebook_sizes=tokenizer.codebook_sizes,
        licence="" if named.weights is not None else tokenizer_spec(named.name).licence,
        report=report,
        pictures=tuple(
            reconstruct_image(
                tokenizer, picture.image, image_size=size, resize=resize, device=compute.device
            ).image
            for picture in first
        ),
    )


def _first_pictures(sources: list[InputFile], count: int) -> list[ShownPicture]:
    """Return the first readable pictures."""

    def readable() -> Iterable[ShownPicture]:
        for entry in entries(sources):
            try:
                yield ShownPicture(entry.key, entry.image())
            except READING_ERRORS:  # the report names it
                continue

    return list(islice(readable(), count))


def _legend(tokenizers: Sequence[ComparedTokenizer], width: int) -> Image.Image:
    """Return lines that say what each tokenizer makes of a picture."""
    font = ImageFont.load_default(_FONT)
    lines = []
    for one in tokenizers:
        bits = one.report.bits_per_picture
        parts = [
            f"{one.label}: {one.image_size} px",
            ids_in_words(one.grid, one.codebook_sizes),
            f"{bits:,.0f} bits a picture, {bits / one.image_size**2:.3g} a pixel",
            f"PSNR {one.report.psnr:.2f} dB over {one.report.protocol['pictures']} pictures",
        ]
        lines += wrapped_lines(", ".join(parts), font, width)
    legend = Image.new("RGB", (width, len(lines) * line_height(font)), "white")
    write_lines(ImageDraw.Draw(legend), (0, 0), lines, font, _FAINT)
    return legend


def ids_in_words(grid: tuple[int, int], codebook_sizes: Sequence[int]) -> str:
    """Return the ids of a picture in words, such as "16 x 16 x 8 ids of 4,096 codes"."""
    levels = len(codebook_sizes)
    sides = " x ".join(map(str, (*grid, levels) if levels > 1 else grid))
    shown = codebook_sizes[:1] if len({*codebook_sizes}) == 1 else codebook_sizes
    return f"{sides} ids of {', '.join(f'{size:,}' for size in shown)} codes"
