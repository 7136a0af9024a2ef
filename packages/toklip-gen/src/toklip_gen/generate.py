"""What ``toklip generate`` does: prompts to picture files."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from toklip_core.devices import refuse_missing_device
from toklip_core.evaluation import warn_of_unknown_words
from toklip_core.files import held_alone, replace_lone_surrogates, write_text
from toklip_core.outputs import WRITTEN_SUFFIXES, refuse_folder, refuse_output
from toklip_core.pictures import PictureError, open_picture, save_picture, to_picture, to_pixels
from toklip_core.ranges import MAX_PIXELS, refuse_counts, refuse_drawing
from toklip_core.weights import weights_checksum
from torch import Tensor, nn
from tqdm import tqdm

from toklip_gen.generator import (
    TOKLIP,
    Choice,
    Classes,
    Guidance,
    PictureGenerator,
    Texts,
    load_generator,
    refuse_guidance,
)

_log = logging.getLogger(__name__)

#: Beside the pictures of a call that has not ended: what they are of.
_RECORD = ".generate.json"
#: Locked by the process that generates into the folder.
_LOCK = ".generate.lock"
_TAKEN = "the folder {} has pictures already; name another one, or empty it"
#: Pixels between the pictures of a grid.
_GAP = 2


@dataclass(frozen=True)
class Picture:
    """Picture that was generated."""

    #: Text or class.
    prompt: str | int
    #: Seed that, with the same settings, generates the picture again on its own.
    seed: int
    #: File of the picture, or of the grid that it is in, row by row.
    file: str


@dataclass(frozen=True)
class GenerateReport:
    """Report of one call of :func:`generate`."""

    pictures: tuple[Picture, ...]
    seconds: float
    #: Settings of the sampling.
    settings: dict[str, Any]
    #: Number of pictures that an earlier, interrupted run of the same call had written.
    found: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON data."""
        return asdict(self)

    def as_text(self) -> str:
        """Return the report as one line of text."""
        files = sorted({picture.file for picture in self.pictures})
        shown = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
        before = f", {self.found} of them before" if self.found else ""
        count = f"{len(self.pictures)} picture{'s' * (len(self.pictures) != 1)}{before}"
        return f"written: {shown} ({count}, {self.seconds:.1f} s)"


def generate(
    prompts: Sequence[int | str],
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
    of_classes: bool = False,
    prefix: Path | str | None = None,
    prefix_rows: int | None = None,
    max_pixels: int = MAX_PIXELS,
    batch_size: int = 16,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    compiled: bool = False,
    progress: bool = False,
) -> GenerateReport:
    """Generate pictures and write them to a file or folder.

    Args:
        prompts: classes, by number or name, or texts, depending on the generator.
        out: picture file for one grid of all pictures, one row per prompt if there are several; or folder, created if
            it is missing, for one file each. The folder must have no pictures, except those of an interrupted run of
            the same call, which is then resumed. Each batch is written as soon as it is finished.
        model: generator, see :func:`toklip_gen.generator.load_generator`, also for ``toklip``, ``dtype`` and
            ``device``.
        number: number of pictures per prompt.
        seed: seed of the first picture of each prompt; each further picture adds one.
        guidance: see :func:`toklip_gen.generator.sample`, also for the next three and ``compiled``; None, here and for
            ``top_k``: the generator's own.
        of_classes: take prompts as classes, and refuse a generator of texts, which would read a class name as a text.
        prefix: picture whose upper rows are kept.
        prefix_rows: number of rows of ids to keep; None: the upper half.
        max_pixels: maximum pixels of the prefix, see :func:`toklip_core.pictures.open_picture`.
        batch_size: number of pictures sampled at once.
        progress: show progress bars on stderr.

    Raises:
        LookupError: there is no such generator.
        OSError: a file cannot be read or written, or another process generates into the folder.
        ValueError: a setting is out of its range, or the generator does not know a prompt.
    """
    started = time.perf_counter()
    refuse_missing_device(device)
    guidance = Guidance(guidance) if isinstance(guidance, int | float) else guidance
    _refuse_numbers(guidance, Choice(temperature, top_k or 0, top_p), seed, number, batch_size)
    out = Path(out)
    _refuse_place(out, prefix)
    if not prompts:
        raise ValueError("got no prompt; say what is to be drawn")
    prompts = [replace_lone_surrogates(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    if not all(str(prompt).strip() for prompt in prompts):
        raise ValueError("got an empty text; say what is to be drawn")
    pictures = load_generator(model, toklip=toklip, dtype=dtype, device=device)
    if of_classes and isinstance(pictures.conditions, Texts):
        raise ValueError(f"got the class {prompts[0]!r}, but the generator draws texts, not classes; say what to draw")
    if isinstance(pictures.conditions, Classes):
        pictures.conditions(prompts)  # what is no class leaves nothing behind
        _warn_of_names(pictures.conditions, [prompt for prompt in prompts if isinstance(prompt, int)])
    tower = pictures.config.condition.kind == "text" and pictures.config.condition.encoder == TOKLIP
    if tower and pictures.toklip is not None and pictures.toklip.text is not None:
        warn_of_unknown_words(pictures.toklip.text, [prompt for prompt in prompts if isinstance(prompt, str)])
    if isinstance(pictures.conditions, Texts):
        pictures.conditions.refuse_cut([prompt for prompt in prompts if isinstance(prompt, str)])
    begun = None if prefix is None else _prefix(pictures, prefix, prefix_rows, max_pixels)
    guidance = Guidance(pictures.config.guidance) if guidance is None else guidance
    top_k = pictures.config.top_k if top_k is None else top_k
    how = {"guidance": guidance, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    wanted = Wanted(prompts, number, seed)
    ids = [] if begun is None else begun[0].tolist()
    with _opened(out, wanted, pictures, {**how, "prefix": ids, "computed": str(device)}) as place:
        _draw(pictures, wanted, place, how, begun=begun, batch_size=batch_size, compiled=compiled, progress=progress)
    report = tuple(Picture(*wanted[number], place.file(number)) for number in range(len(wanted)))
    begins = None if prefix is None else str(prefix)
    shown = {"model": str(model), **how, "guidance": guidance.scale, **_schedule(guidance), "prefix": begins}
    return GenerateReport(report, time.perf_counter() - started, shown, found=place.found)


class Wanted:
    """Prompt and seed of each picture by its number, one prompt after another."""

    def __init__(self, prompts: Sequence[int | str], each: int, seed: int) -> None:
        self.prompts, self.each, self.seed = prompts, each, seed

    def __len__(self) -> int:
        return len(self.prompts) * self.each

    def __getitem__(self, number: int) -> tuple[int | str, int]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        return self.prompts[number // self.each], self.seed + number % self.each


def _draw(
    pictures: PictureGenerator,
    wanted: Wanted,
    place: _Grid | _Folder,
    how: dict[str, Any],
    *,
    begun: Tensor | None,
    batch_size: int,
    compiled: bool,
    progress: bool,
) -> None:
    """Draw what is not there, and write each batch as it is finished."""
    several = len(wanted) - place.found > batch_size
    starts = range(place.found, len(wanted), batch_size)
    for start in tqdm(starts, desc="batches", disable=not (progress and several)):
        batch = [wanted[number] for number in range(start, min(start + batch_size, len(wanted)))]
        ids = pictures.draw(
            [prompt for prompt, _ in batch],
            seeds=[own for _, own in batch],
            prefix=None if begun is None else begun.expand(len(batch), -1),
            compiled=compiled,
            progress=progress and not several,
            **how,
        )
        place.add(start, list(map(to_picture, pictures.pixels(ids).cpu())))
    place.close()


class _Grid:
    """All pictures in one file, row by row, which is there from the first batch on.

    Raises:
        ValueError: the grid would be too large.
    """

    #: None is there before: a grid is drawn as a whole.
    found = 0

    def __init__(self, out: Path, wanted: Wanted, size: tuple[int, int]) -> None:
        self._out = out
        columns = wanted.each if len(wanted.prompts) > 1 else math.ceil(math.sqrt(wanted.each))
        height, width = size
        rows = -(-len(wanted) // columns)
        self._columns, self._step = columns, (width + _GAP, height + _GAP)
        sides = (columns * self._step[0] - _GAP, rows * self._step[1] - _GAP)
        if sides[0] * sides[1] > MAX_PIXELS:
            raise ValueError(
                f"a grid of {len(wanted)} pictures would have {sides[0]} x {sides[1]} pixels, more than {MAX_PIXELS}; "
                "name a folder (--out FOLDER), for a file each"
            )
        self._canvas = Image.new("RGB", sides, "white")

    def add(self, start: int, pictures: Sequence[Image.Image]) -> None:
        """Write the pictures from number ``start`` on beside those before."""
        for number, picture in enumerate(pictures, start=start):
            row, column = divmod(number, self._columns)
            self._canvas.paste(picture, (column * self._step[0], row * self._step[1]))
        save_picture(self._canvas, self._out)

    def close(self) -> None:
        """Do nothing: all is written."""

    def file(self, number: int) -> str:
        """Return the file."""
        return str(self._out)


class _Folder:
    """A file for each picture. Until all are there, a hidden file says what they are of, so that the same call goes on.

    Raises:
        ValueError: there are pictures of something else.
    """

    def __init__(self, out: Path, wanted: Wanted, how: dict[str, Any]) -> None:
        self._out, self._record = out, out / _RECORD
        self._digits = max(4, len(str(len(wanted) - 1)))
        call = {"prompts": list(wanted.prompts), "number": wanted.each, "seed": wanted.seed, **how}
        call["software"] = [version("toklip-gen"), version("torch")]
        text = json.dumps(call)
        there = _pictures_in(out)
        if there and (not self._record.is_file() or self._record.read_text("utf-8") != text):
            raise ValueError(_TAKEN.format(out))
        #: So many pictures of this very call are there already, from the first on.
        self.found = next((n for n in range(len(wanted)) if not Path(self.file(n)).is_file()), len(wanted))
        write_text(self._record, text)

    def add(self, start: int, pictures: Sequence[Image.Image]) -> None:
        """Write the pictures from number ``start`` on."""
        for number, picture in enumerate(pictures, start=start):
            save_picture(picture, Path(self.file(number)))

    def close(self) -> None:
        """Say that all are there: another call with this folder is refused again."""
        self._record.unlink(missing_ok=True)

    def file(self, number: int) -> str:
        """Return the file of a picture."""
        return str(self._out / f"{number:0{self._digits}d}.png")


@contextmanager
def _opened(
    out: Path, wanted: Wanted, pictures: PictureGenerator, how: dict[str, Any]
) -> Iterator[_Grid | _Folder]:
    """Yield where the pictures go; a folder is this process's alone while inside, and OSError if it is another's."""
    if out.suffix:
        yield _Grid(out, wanted, pictures.image_size)
        return
    out.mkdir(parents=True, exist_ok=True)
    with held_alone(out / _LOCK, f"another process generates into {out}; wait for its end, or name another folder"):
        yield _Folder(out, wanted, {**how, "weights": _weights(pictures)})


def _weights(pictures: PictureGenerator) -> list[str]:
    """What the pictures of two calls depend on beside their settings: the weights, and their type."""
    parts = [pictures.generator, pictures.tokenizer, *([] if pictures.toklip is None else [pictures.toklip.encoder])]
    if pictures.toklip is not None and pictures.toklip.text is not None:
        parts.append(pictures.toklip.text)
    # A T5 is named by the config.
    config = pictures.config.model_dump_json()
    return [*(weights_checksum(cast(nn.Module, part)) for part in parts), config]


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


def _warn_of_names(classes: Classes, numbers: Sequence[int]) -> None:
    """Name, in the log, the numbers that are names of other classes: a folder may be called 3, and not be class 3."""
    for number in numbers:
        if str(number) in classes.names and (other := classes.number(str(number))) != number:
            own = classes.names[number]
            _log.warning(
                "class %d is drawn, which is named %r; the class that is named '%d' is number %d",
                *(number, own, number, other),
            )


def _prefix(pictures: PictureGenerator, source: Path | str, rows: int | None, max_pixels: int) -> Tensor:
    """(1, n): the ids of the upper rows of a picture."""
    height, width = pictures.image_size
    all_rows = pictures.config.grid[0]
    rows = all_rows // 2 if rows is None else rows
    if not 0 <= rows <= all_rows:
        raise ValueError(f"got {rows} rows of the prefix; wanted 0 to {all_rows}, which the picture has")
    if height != width:
        raise ValueError(f"the generator draws {height} x {width} pixels; a prefix is read for square pictures alone")
    try:
        pixels = to_pixels(open_picture(source, max_pixels=max_pixels), height)
    except PictureError as error:
        raise PictureError(f"the prefix {str(source)!r} cannot be read: {error}") from error
    return pictures.tokenizer.encode(pixels[None].to(pictures.device))[:, :rows].flatten(1)


def _refuse_place(out: Path, prefix: Path | str | None) -> None:
    if out.suffix.lower() in WRITTEN_SUFFIXES:
        refuse_output(out, [] if prefix is None else [prefix])
    elif out.suffix:
        raise ValueError(f"got --out {out}; wanted a folder, or a name that ends in {', '.join(WRITTEN_SUFFIXES)}")
    elif _pictures_in(out) and not (out / _RECORD).is_file():
        raise ValueError(_TAKEN.format(out))
    else:
        folder = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
        refuse_folder(folder, out.name)


def _pictures_in(folder: Path) -> bool:
    return folder.is_dir() and any(path.suffix.lower() in WRITTEN_SUFFIXES for path in folder.iterdir())
