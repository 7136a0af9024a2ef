"""What ``toklip generate`` does: prompts to picture files."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from toklip_core.characters import replace_lone_surrogates
from toklip_core.data import PictureError, open_picture, to_picture, to_pixels
from toklip_core.encoding import refuse_missing_device
from toklip_core.matching import warn_of_unknown_words
from toklip_core.panels import save
from toklip_core.ranges import refuse_counts, refuse_drawing
from torch import Tensor
from tqdm import tqdm

from toklip_gen.conditions import TOKLIP, Texts
from toklip_gen.pipeline import PictureGenerator, load_generator
from toklip_gen.sampling import Choice, Guidance, refuse_guidance

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
#: Pixels between the pictures of a grid.
_GAP = 2


@dataclass(frozen=True)
class Picture:
    """A picture that was drawn."""

    #: The text or the class.
    prompt: str | int
    #: With this seed, and the same settings, it is drawn again, alone.
    seed: int
    #: Of the picture, or of the grid that it is in, row by row.
    file: str


@dataclass(frozen=True)
class GenerateReport:
    """What one call of :func:`generate` did."""

    pictures: tuple[Picture, ...]
    seconds: float
    #: How they were drawn.
    settings: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON data."""
        return asdict(self)

    def as_text(self) -> str:
        """Return it as a line."""
        files = sorted({picture.file for picture in self.pictures})
        shown = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
        return f"written: {shown} ({len(self.pictures)} picture{'s' * (len(self.pictures) != 1)}, {self.seconds:.1f} s)"


def generate(
    prompts: Sequence[int] | Sequence[str],
    out: Path | str,
    *,
    model: str | Path = "toklip-gen-tiny",
    toklip: str | Path | None = None,
    number: int = 1,
    seed: int = 0,
    guidance: Guidance | float | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    prefix: Path | str | None = None,
    prefix_rows: int | None = None,
    batch_size: int = 16,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    compiled: bool = False,
    progress: bool = False,
) -> GenerateReport:
    """Draw pictures and write them.

    Args:
        prompts: classes, or texts, as the generator takes them.
        out: a picture file, which holds all of them, one row for each prompt if there are several; or a folder, made if
            it is not there, for a file each; it must have no pictures yet.
        model: see :func:`toklip_gen.pipeline.load_generator`, also for ``toklip``, ``dtype`` and ``device``.
        number: pictures of each prompt.
        seed: of the first picture of each prompt; each further one has the next.
        guidance: see :func:`toklip_gen.sampling.sample`, also for the next three and ``compiled``; None: the
            generator's own, as for ``top_k``.
        prefix: a picture whose upper rows are kept.
        prefix_rows: rows of ids that are kept; None: the upper half.
        batch_size: pictures at a time.
        progress: show bars on stderr.

    Raises:
        LookupError: there is no such generator.
        OSError: a file cannot be read or written.
        ValueError: a setting is out of its range, or a prompt is none of the generator's.
    """
    started = time.perf_counter()
    refuse_missing_device(device)
    guidance = Guidance(guidance) if isinstance(guidance, int | float) else guidance
    _refuse_numbers(guidance, Choice(temperature, top_k or 0, top_p), seed, number, batch_size)
    out = Path(out)
    _refuse_place(out)
    if not prompts:
        raise ValueError("got no prompt; say what is to be drawn")
    prompts = cast(
        list[str], [replace_lone_surrogates(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    )
    if not all(str(prompt).strip() for prompt in prompts):
        raise ValueError("got an empty text; say what is to be drawn")
    pictures = load_generator(model, toklip=toklip, dtype=dtype, device=device)
    tower = pictures.config.condition.kind == "text" and pictures.config.condition.encoder == TOKLIP
    if tower and pictures.toklip is not None and pictures.toklip.text is not None:
        warn_of_unknown_words(pictures.toklip.text, [prompt for prompt in prompts if isinstance(prompt, str)])
    if isinstance(pictures.conditions, Texts):
        pictures.conditions.refuse_cut(prompts)
    begun = None if prefix is None else _prefix(pictures, prefix, prefix_rows)
    wanted = [(prompt, seed + place) for prompt in prompts for place in range(number)]
    guidance = Guidance(pictures.config.guidance) if guidance is None else guidance
    top_k = pictures.config.top_k if top_k is None else top_k
    settings = {"guidance": guidance, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    drawn: list[Image.Image] = []
    several = len(wanted) > batch_size
    for start in tqdm(range(0, len(wanted), batch_size), desc="batches", disable=not (progress and several)):
        batch = wanted[start : start + batch_size]
        ids = pictures.draw(
            [prompt for prompt, _ in batch],
            seeds=[own for _, own in batch],
            prefix=None if begun is None else begun.expand(len(batch), -1),
            compiled=compiled,
            progress=progress and not several,
            **settings,  # type: ignore[arg-type]
        )
        drawn += map(to_picture, pictures.pixels(ids).cpu())
    columns = number if len(prompts) > 1 else math.ceil(math.sqrt(number))
    files = _write(drawn, out, columns)
    report = tuple(Picture(*what, file) for what, file in zip(wanted, files, strict=True))
    begins = None if prefix is None else str(prefix)
    shown = {"model": str(model), **settings, "guidance": guidance.scale, **_schedule(guidance), "prefix": begins}
    return GenerateReport(report, time.perf_counter() - started, shown)


def grid(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Return pictures of one size side by side, row by row, on white."""
    width, height = pictures[0].width + _GAP, pictures[0].height + _GAP
    rows = -(-len(pictures) // columns)
    canvas = Image.new("RGB", (columns * width - _GAP, rows * height - _GAP), "white")
    for place, picture in enumerate(pictures):
        canvas.paste(picture, (place % columns * width, place // columns * height))
    return canvas


def _schedule(guidance: Guidance) -> dict[str, int | float | None]:
    """What of it is not the default, for a report."""
    usual = Guidance(guidance.scale)._asdict()
    return {f"guidance_{name}": value for name, value in guidance._asdict().items() if value != usual[name]}


def _refuse_numbers(guidance: Guidance | None, choice: Choice, seed: int, number: int, batch_size: int) -> None:
    """ValueError for what would be refused later anyhow, before a generator is loaded."""
    refuse_counts(number=number, batch_size=batch_size)
    refuse_drawing(**choice._asdict(), seeds=(seed, seed + number - 1))
    if guidance is not None:
        refuse_guidance(guidance)


def _prefix(pictures: PictureGenerator, source: Path | str, rows: int | None) -> Tensor:
    """(1, n): the ids of the upper rows of a picture."""
    height, width = pictures.image_size
    all_rows = pictures.config.grid[0]
    rows = all_rows // 2 if rows is None else rows
    if not 0 <= rows <= all_rows:
        raise ValueError(f"got {rows} rows of the prefix; wanted 0 to {all_rows}, which the picture has")
    if height != width:
        raise ValueError(f"the generator draws {height} x {width} pixels; a prefix is read for square pictures alone")
    try:
        pixels = to_pixels(open_picture(source), height)
    except PictureError as error:
        raise PictureError(f"the prefix {str(source)!r} cannot be read: {error}") from error
    return pictures.tokenizer.encode(pixels[None].to(pictures.device))[:, :rows].flatten(1)


def _refuse_place(out: Path) -> None:
    if out.suffix.lower() in _SUFFIXES:
        if not out.absolute().parent.is_dir():
            folder = out.absolute().parent
            raise FileNotFoundError(f"there is no folder {folder} to write {out.name} into; make it first")
    elif out.is_dir() and any(path.suffix.lower() in _SUFFIXES for path in out.iterdir()):
        raise ValueError(f"the folder {out} has pictures already; name another one, or empty it")
    elif out.suffix:
        raise ValueError(f"got --out {out}; wanted a folder, or a name that ends in {', '.join(_SUFFIXES)}")


def _write(pictures: Sequence[Image.Image], out: Path, columns: int) -> list[str]:
    """Write the pictures, and return the file that each is in."""
    if out.suffix:
        save(grid(pictures, columns), out)
        return [str(out)] * len(pictures)
    out.mkdir(parents=True, exist_ok=True)
    digits = max(4, len(str(len(pictures) - 1)))
    files = [out / f"{place:0{digits}d}.png" for place in range(len(pictures))]
    for picture, file in zip(pictures, files, strict=True):
        save(picture, file)
    return [str(file) for file in files]
