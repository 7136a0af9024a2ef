"""``toklip generate``: draws prompts and writes picture files."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image
from toklip_core.config import MAX_PIXELS, refuse_counts, refuse_drawing, refuse_missing_device
from toklip_core.drawing import Drawing, Window, refuse_window
from toklip_core.files import held_alone, named_error, one_line, replace_lone_surrogates, write_text
from toklip_core.pictures import (
    WRITTEN_SUFFIXES,
    PictureError,
    open_picture,
    refuse_folder,
    refuse_output,
    save_picture,
    to_picture,
    to_pixels,
)
from toklip_core.plugins import PictureModel
from torch import Tensor
from tqdm import tqdm

from toklip_gen.generator import ModelSettings

#: File beside the pictures of an unfinished call, with its prompts and settings.
_RECORD = ".generate.json"
#: File that the process that generates into the folder locks.
_LOCK = ".generate.lock"
_TAKEN = "the folder {} has pictures already; name another one, or empty it"
#: Gap between the pictures of a grid, in pixels.
_GAP = 2


@dataclass(frozen=True)
class PictureRecord:
    """A generated picture."""

    #: Text or class.
    prompt: str | int
    #: Seed that generates the same picture alone, with the same settings.
    seed: int
    #: File of the picture, or of its grid, which has the pictures row by row.
    file: str


@dataclass(frozen=True)
class GenerateReport:
    """Report of one call of :func:`generate`."""

    pictures: tuple[PictureRecord, ...]
    seconds: float
    #: Model, prefix and settings of drawing.
    settings: dict[str, Any]
    #: Number of pictures that an earlier, interrupted run of the same call had written.
    found: int = 0
    #: Number of calls of the model's network for all batches.
    calls: int = 0
    #: Positions of each picture that a call drew on average; None if nothing was drawn.
    positions_per_call: float | None = None
    #: Width of the window of the last batch, with "auto" the fastest that was tried in full; 1 if the prefix was the
    #: whole picture, None if an earlier run had drawn everything.
    window: int | None = None

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


@dataclass(frozen=True)
class Prefix:
    """Picture whose upper rows are kept, while the rest is drawn."""

    picture: Path | str
    #: Number of rows of ids to keep; None: the upper half.
    rows: int | None = None
    #: Maximum pixels of the picture, see :func:`toklip_core.pictures.open_picture`.
    max_pixels: int = MAX_PIXELS


@dataclass(frozen=True, kw_only=True)
class GenerateSettings:
    """Settings of :func:`generate`.

    Raises:
        ValueError: a number is out of its range.
    """

    #: Model that draws.
    model: ModelSettings = ModelSettings()
    #: Settings of drawing; those that are None are the model's own.
    drawing: Drawing = Drawing()
    #: Number of pictures per prompt.
    count: int = 1
    #: Seed of the first picture of each prompt; each further picture adds one.
    seed: int = 0
    #: Take prompts as classes, and refuse a model of texts, which would read the name of a class as a text.
    of_classes: bool = False
    #: Picture whose upper rows all pictures share.
    prefix: Prefix | None = None
    #: Number of pictures sampled at once.
    batch_size: int = 16
    #: Run with ``torch.compile``, see :meth:`toklip_core.drawing.Sampler.draw`.
    compiled: bool = False
    #: Largest number of positions that a call of the model draws, or "auto"; see :class:`toklip_core.drawing.Sampler`.
    window: Window = 1

    def __post_init__(self) -> None:
        refuse_counts(count=self.count, batch_size=self.batch_size)
        refuse_window(self.window)
        refuse_drawing(seeds=(self.seed, self.seed + self.count - 1))


def generate(
    prompts: Sequence[int | str],
    out: Path | str,
    settings: GenerateSettings = GenerateSettings(),
    *,
    progress: bool = False,
) -> GenerateReport:
    """Generate pictures and write them to a file or folder.

    Args:
        prompts: classes, by number or name, or texts, depending on the model.
        out: picture file for one grid of all pictures, one row per prompt if there are several; or folder for one file
            each, created if it is missing and its name has no suffix. The folder must have no pictures, except those of
            an interrupted run of the same call, which is then resumed. Each batch is written as soon as it is finished.
        settings: model, settings of drawing, and number of pictures.
        progress: show progress bars on stderr.

    Raises:
        LookupError: the model is unknown.
        OSError: a file cannot be read or written, or another call generates into the folder.
        ValueError: a setting is out of its range, or the model does not know a prompt.

    >>> from tempfile import TemporaryDirectory
    >>> settings = GenerateSettings(count=2, drawing=Drawing(top_k=50))
    >>> with TemporaryDirectory() as folder:
    ...     report = generate(["a red circle"], f"{folder}/circles.png", settings)
    >>> len(report.pictures), report.settings["top_k"]
    (2, 50)
    """
    started = time.perf_counter()
    refuse_missing_device(settings.model.device)
    out, prefix = Path(out), settings.prefix
    _refuse_place(out, prefix)
    prompts = _readable(prompts)
    model = settings.model.load()
    if settings.of_classes and model.classes is None:
        raise ValueError(f"got the class {prompts[0]!r}, but the generator draws texts, not classes; say what to draw")
    model.refuse_prompts(prompts)  # before any file is written
    begun = None if prefix is None else _ids_of(prefix, model)
    drawing = settings.drawing.completed(model.drawing)
    wanted = PromptList(prompts, settings.count, settings.seed)
    how = {**asdict(drawing), "prefix": [] if begun is None else begun[0].tolist()}
    with _open_place(out, wanted, model, {**how, "computed": str(settings.model.device)}) as place:
        settings = replace(settings, drawing=drawing)
        calls, positions, window = _draw(model, wanted, place, settings, begun=begun, progress=progress)
    report = tuple(PictureRecord(*wanted[number], place.file(number)) for number in range(len(wanted)))
    begins = None if prefix is None else str(prefix.picture)
    shown = {"model": str(settings.model.name), **drawing.as_json(), "prefix": begins}
    each = positions / calls if calls else None
    return GenerateReport(report, time.perf_counter() - started, shown, place.found, calls, each, window)


class PromptList:
    """Prompts and seeds of pictures, by number, with the pictures of one prompt after another."""

    def __init__(self, prompts: Sequence[int | str], each: int, seed: int) -> None:
        self.prompts, self.each, self.seed = prompts, each, seed

    def __len__(self) -> int:
        return len(self.prompts) * self.each

    def __getitem__(self, number: int) -> tuple[int | str, int]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        return self.prompts[number // self.each], self.seed + number % self.each


def _draw(
    model: PictureModel,
    wanted: PromptList,
    place: _Grid | _Folder,
    settings: GenerateSettings,
    *,
    begun: Tensor | None,
    progress: bool,
) -> tuple[int, int, int | None]:
    """Draw the missing pictures, and write each batch when it is finished.

    Return all calls, the positions that they drew, and the width of the last window.
    """
    size, calls, positions, window = settings.batch_size, 0, 0, None
    several = len(wanted) - place.found > size
    starts = range(place.found, len(wanted), size)
    for start in tqdm(starts, desc="batches", disable=not (progress and several)):
        batch = [wanted[number] for number in range(start, min(start + size, len(wanted)))]
        drawn = model.draw(
            [prompt for prompt, _ in batch],
            seeds=[own for _, own in batch],
            drawing=settings.drawing,
            prefix=None if begun is None else begun.expand(len(batch), -1, -1),
            window=settings.window,
            compiled=settings.compiled,
            progress=progress and not several,
        )
        calls, window = calls + drawn.calls, drawn.window
        positions += drawn.ids[0, ..., 0].numel() - (0 if begun is None else begun.shape[1])
        place.add(start, list(map(to_picture, model.pixels(drawn.ids).cpu())))
    place.close()
    return calls, positions, window


class _Grid:
    """Output of all pictures to one file, row by row, which exists from the first batch on.

    Raises:
        ValueError: the grid would be too large.
    """

    #: Number of pictures from before: 0, because a grid is always drawn as a whole.
    found = 0

    def __init__(self, out: Path, wanted: PromptList, size: tuple[int, int]) -> None:
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
        """Add the pictures from number ``start`` on, and write the grid."""
        for number, picture in enumerate(pictures, start=start):
            row, column = divmod(number, self._columns)
            self._canvas.paste(picture, (column * self._step[0], row * self._step[1]))
        save_picture(self._canvas, self._out)

    def close(self) -> None:
        """Do nothing, since everything is written."""

    def file(self, number: int) -> str:
        """Return the file of the grid."""
        return str(self._out)


class _Folder:
    """Output of pictures to a file each. Until all exist, a hidden file has the prompts and settings, for resuming.

    Raises:
        ValueError: the folder has pictures of another call.
    """

    def __init__(self, out: Path, wanted: PromptList, how: dict[str, Any]) -> None:
        self._out, self._record = out, out / _RECORD
        self._digits = max(4, len(str(len(wanted) - 1)))
        call = {"prompts": list(wanted.prompts), "count": wanted.each, "seed": wanted.seed, **how}
        call["software"] = [version("toklip-gen"), version("torch")]
        text = json.dumps(call)
        there = _pictures_in(out)
        if there and (not self._record.is_file() or self._record.read_text("utf-8") != text):
            raise ValueError(_TAKEN.format(out))
        #: Number of pictures of this call that exist already, from the first on.
        self.found = next((n for n in range(len(wanted)) if not Path(self.file(n)).is_file()), len(wanted))
        write_text(self._record, text)

    def add(self, start: int, pictures: Sequence[Image.Image]) -> None:
        """Write the pictures from number ``start`` on."""
        for number, picture in enumerate(pictures, start=start):
            save_picture(picture, Path(self.file(number)))

    def close(self) -> None:
        """Delete the hidden file, so that further calls with this folder are refused."""
        self._record.unlink(missing_ok=True)

    def file(self, number: int) -> str:
        """Return the file of a picture."""
        return str(self._out / f"{number:0{self._digits}d}.png")


@contextmanager
def _open_place(out: Path, wanted: PromptList, model: PictureModel, how: dict[str, Any]) -> Iterator[_Grid | _Folder]:
    """Yield the output of pictures; a folder is locked while inside, and OSError if another call uses it."""
    if _is_file(out):
        yield _Grid(out, wanted, model.image_size)
        return
    out.mkdir(parents=True, exist_ok=True)
    with held_alone(out / _LOCK, f"another call generates into {out}; wait for its end, or name another folder"):
        yield _Folder(out, wanted, {**how, "weights": model.checksums()})


def _readable(prompts: Sequence[int | str]) -> list[int | str]:
    """Return prompts without lone surrogates; ValueError if there is none, or an empty one, or one text alone."""
    if isinstance(prompts, str):  # it would be read letter by letter
        raise ValueError(f"got one text, {one_line(prompts, longest=80)!r}; wanted a list of texts or classes")
    if not prompts:
        raise ValueError("got no prompt; say what is to be drawn")
    readable = [replace_lone_surrogates(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    if not all(str(prompt).strip() for prompt in readable):
        raise ValueError("got an empty text; say what is to be drawn")
    return readable


def _ids_of(prefix: Prefix, model: PictureModel) -> Tensor:
    """Return the ids (1, n, Q) of the upper rows of a picture."""
    height, width = model.image_size
    all_rows, _ = model.tokenizer.grid(height, width)
    rows = all_rows // 2 if prefix.rows is None else prefix.rows
    if not 0 <= rows <= all_rows:
        raise ValueError(f"got {rows} rows of the prefix; wanted 0 to {all_rows}, which the picture has")
    if height != width:
        raise ValueError(f"the generator draws {height} x {width} pixels; a prefix is read for square pictures alone")
    try:
        pixels = to_pixels(open_picture(prefix.picture, max_pixels=prefix.max_pixels), height, model.resize)
    except PictureError as error:
        raise PictureError(f"the prefix {str(prefix.picture)!r} cannot be read: {error}") from error
    except (OSError, MemoryError) as error:
        raise named_error(error, f"the prefix {str(prefix.picture)!r}") from error
    return model.tokenizer.encode(pixels[None].to(model.device))[:, :rows].flatten(1, 2)


def _refuse_place(out: Path, prefix: Prefix | None) -> None:
    if _is_file(out):
        refuse_output(out, [] if prefix is None else [prefix.picture])
    elif out.suffix and not out.is_dir():  # out.gif, or a folder run-1.5
        suffixes = ", ".join(WRITTEN_SUFFIXES)
        raise ValueError(f"got --out {out}; make it first if it is a folder, or name a file that ends in {suffixes}")
    elif _pictures_in(out) and not (out / _RECORD).is_file():
        raise ValueError(_TAKEN.format(out))
    else:
        folder = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
        refuse_folder(folder, out.name)


def _is_file(out: Path) -> bool:
    return out.suffix.lower() in WRITTEN_SUFFIXES and not out.is_dir()


def _pictures_in(folder: Path) -> bool:
    return folder.is_dir() and any(path.suffix.lower() in WRITTEN_SUFFIXES for path in folder.iterdir())
