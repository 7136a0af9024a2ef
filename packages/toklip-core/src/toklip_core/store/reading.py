"""Pictures into squares of RGB values, for the models of a store; in worker processes on request.

    pictures -image()-> RGB -resized-> squares of each size, in batches
"""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import multiprocessing.process
import os
import signal
import threading
import warnings
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from toklip_core.files import why_unreadable
from toklip_core.pictures import (
    READING_ERRORS,
    InputFile,
    Resize,
    count_of,
    entries,
    resized,
    share_of_worker,
    upright_crops,
)
from toklip_core.store.format import UnreadablePicture
from toklip_core.training import USER_ERRORS, as_it_is, held_back, leave_signals_to_the_parent, portable

_SLOT_BYTES = 2048  # for the key that a worker reads; nearly all keys are shorter


class UnopenedPicture(Protocol):
    """What is read of a picture: an :class:`toklip_core.pictures.Entry`, or bytes that another program passes."""

    @property
    def key(self) -> str:
        """Name in a store."""

    @property
    def path(self) -> Path | str:
        """Where it is, for the report of unreadable pictures."""

    def image(self) -> Image.Image:
        """Read the picture; PictureError or OSError if that is impossible."""

    def caption(self) -> str | None:
        """Return its caption, None if there is none; PictureError or OSError if it cannot be read."""


class SquareBatch(NamedTuple):
    """Squares (n, size, size, 3) uint8 of each size, their keys and captions, and what was left out before them."""

    keys: list[str]
    captions: list[str | None]
    squares: list[np.ndarray[Any, Any]]
    crops: np.ndarray[Any, Any] | None
    unreadable: list[UnreadablePicture]
    skipped: int


@dataclass(frozen=True)
class SquareReader:
    """How pictures become the squares that the models of a store read.

    Args:
        sizes: sides of the squares of each picture.
        cropped: whether :func:`toklip_core.pictures.upright_crops` of the first size are read, too.
        resize: see :func:`toklip_core.pictures.resized`.
        batch_size: number of pictures of a batch.
    """

    sizes: tuple[int, ...]
    cropped: bool
    resize: Resize
    batch_size: int

    def batches(
        self,
        pictures: Iterable[UnopenedPicture],
        done: Container[str] = (),
        say: Callable[[str], None] = lambda key: None,
    ) -> Iterator[SquareBatch]:
        """Read pictures in order, readable or not ``batch_size`` of them a batch; the last batch may have none.

        So a second reading has the same batches, even if a picture can be read in one of them only.

        Args:
            pictures: pictures to read.
            done: keys that are skipped.
            say: function that is told the key of each picture before it is read, and "" before each batch.
        """
        keys: list[str] = []
        captions: list[str | None] = []
        squares: list[list[np.ndarray[Any, Any]]] = []
        unreadable: list[UnreadablePicture] = []
        skipped = 0
        for picture in pictures:
            if picture.key in done:
                skipped += 1
                continue
            say(picture.key)
            try:
                of_sizes, caption = self._squares(picture.image()), picture.caption()
            except READING_ERRORS as error:
                unreadable.append(UnreadablePicture(picture.key, str(picture.path), why_unreadable(error)))
            else:
                keys.append(picture.key)
                captions.append(caption)
                squares.append(of_sizes)
            if len(keys) + len(unreadable) == self.batch_size:
                say("")  # while it waits, it reads nothing
                yield SquareBatch(keys, captions, *self._stacked(squares), unreadable, skipped)
                keys, captions, squares, unreadable, skipped = [], [], [], [], 0
        say("")
        yield SquareBatch(keys, captions, *self._stacked(squares), unreadable, skipped)

    def _squares(self, image: Image.Image) -> list[np.ndarray[Any, Any]]:
        squares = [np.asarray(resized(image, size, self.resize)) for size in self.sizes]
        return [*squares, upright_crops(image, self.sizes[0], self.resize)] if self.cropped else squares

    def _stacked(
        self, squares: list[list[np.ndarray[Any, Any]]]
    ) -> tuple[list[np.ndarray[Any, Any]], np.ndarray[Any, Any] | None]:
        stacked = [np.stack(of_one_size) for of_one_size in zip(*squares, strict=True)]
        return stacked, stacked.pop() if self.cropped and stacked else None


class _WorkerDied(OSError):
    """A process that reads pictures ended before its work did."""


class _Reading:
    """The picture that each worker is reading, in shared memory, because a killed worker cannot send it."""

    def __init__(self, workers: int) -> None:
        self._slots = multiprocessing.RawArray(ctypes.c_char, workers * _SLOT_BYTES)

    def say(self, worker: int, key: str) -> None:
        """Record, in a worker, the picture that it reads next, or "" for none."""
        said = f"{os.getpid()} {key}".encode()[:_SLOT_BYTES]
        slots = memoryview(self._slots).cast("B")
        slots[worker * _SLOT_BYTES : (worker + 1) * _SLOT_BYTES] = said.ljust(_SLOT_BYTES, b"\0")

    def processes(self) -> dict[int, str]:
        """Return process id -> the picture that this worker is reading."""
        slots = bytes(self._slots)
        said = (slots[start : start + _SLOT_BYTES].rstrip(b"\0") for start in range(0, len(slots), _SLOT_BYTES))
        return {int(pid): key for pid, _, key in (one.decode("utf-8", "ignore").partition(" ") for one in said if one)}

    def of_the_dead(self) -> list[str]:
        """Return the pictures that workers were reading when they died."""
        alive = {child.pid for child in multiprocessing.active_children()}
        return [key for pid, key in self.processes().items() if key and pid not in alive]


@dataclass(frozen=True)
class PictureWork(IterableDataset[SquareBatch | Exception]):
    """Data set that reads pictures; in a worker process, its share of them.

    Batches are numpy arrays, which go through a pipe. Tensors would go through /dev/shm, which has 64 MB in containers.

    Args:
        sources: inputs with the pictures.
        done: keys that are skipped.
        reader: what is read of each picture.
        max_pixels: limit of a picture's pixels, for the message about a worker that died.
    """

    sources: list[InputFile]
    done: Container[str]
    reader: SquareReader
    max_pixels: int
    reading: _Reading | None = None

    def __iter__(self) -> Iterator[SquareBatch | Exception]:
        """Yield batches, and an error as the last value."""
        worker = get_worker_info()
        sources = self.sources if worker is None else share_of_worker(self.sources, worker.id, worker.num_workers)
        try:
            yield from self.batches(sources)
        except USER_ERRORS as error:
            yield portable(error)

    def batches(self, sources: list[InputFile]) -> Iterator[SquareBatch]:
        """Yield the batches of some of the sources."""
        return self.reader.batches(entries(sources), self.done, self._say)

    def _say(self, key: str) -> None:
        worker = get_worker_info()
        if self.reading is not None and worker is not None:
            self.reading.say(worker.id, key)


def batches_of_workers(work: PictureWork, workers: int) -> Generator[SquareBatch]:
    """Yield the batches of the workers, and raise their errors here.

    If a worker dies, raise _WorkerDied, which names the picture that it was reading.
    """
    total = count_of(work.sources)
    if total is not None:  # starting a process takes longer than reading less than a batch
        workers = min(workers, math.ceil(total / work.reader.batch_size))
    if workers == 0:
        yield from work.batches(work.sources)
        return
    reading = _Reading(workers)
    others = {*multiprocessing.active_children()}
    with warnings.catch_warnings():
        # More processes than cores make sense if they wait for a disk.
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        loader: DataLoader[SquareBatch | Exception] = DataLoader(
            replace(work, reading=reading),
            batch_size=None,
            num_workers=workers,
            collate_fn=as_it_is,
            worker_init_fn=_follow_the_parent,
        )
        try:
            with held_back():
                batches = iter(loader)
        except BaseException:
            _kill({*multiprocessing.active_children()} - others)
            raise
    # Taken now, because another thread of this program may start processes meanwhile.
    processes = {*multiprocessing.active_children()} - others
    failure: Exception | None = None
    with _DeathsAtNext() as deaths:
        try:
            while (batch := deaths.next(batches)) is not None:
                if isinstance(batch, Exception):
                    raise batch
                yield batch
        except Exception as error:  # whatever it is, it is raised below, when the workers have ended
            failure = error.with_traceback(None)  # because its frames would keep torch's workers alive
            if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
                failure = _WorkerDied(_death_in_words(reading.of_the_dead(), work.max_pixels))
        finally:
            _kill(processes)
            del batches
    if failure is not None:  # raised here, where nothing keeps them alive
        raise failure


def _kill(processes: Iterable[multiprocessing.process.BaseProcess]) -> None:
    """Kill workers. They ignore SIGTERM, so this process would wait for them when it ends.

    Nothing is lost, because their pictures are read again.
    """
    for process in processes:
        process.kill()


def _death_in_words(keys: Sequence[str], max_pixels: int) -> str:
    read = f" while it read {' or '.join(keys[:3])}" if keys else ""
    return (
        f"a process that reads pictures was killed{read}, mostly for want of memory; what was encoded is kept: run it "
        f"again with fewer --workers, or with a smaller limit of a picture's pixels (--max-pixels, now {max_pixels})"
    )


class _DeathsAtNext:
    """Delay torch's error about a dead worker until the next batch is requested.

    torch's SIGCHLD handler raises wherever this process is at that moment, for example between the keys of a row and
    its ids.
    """

    def __init__(self) -> None:
        self._waiting = False
        self._torch: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD"):
            self._torch = signal.signal(signal.SIGCHLD, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        if self._torch is not None:
            signal.signal(signal.SIGCHLD, self._torch)

    def next(self, batches: Iterator[SquareBatch | Exception]) -> SquareBatch | Exception | None:
        """Return the next batch or error, None at the end; RuntimeError if a worker died."""
        self._waiting = True
        try:
            self._note(0, None)  # for a worker that died before
            return next(batches, None)
        finally:
            self._waiting = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._waiting and callable(self._torch):
            self._torch(number, frame)


def _follow_the_parent(worker: int) -> None:
    """Ignore signals that ask for an end, and end when the parent does.

    The parent still needs the results of its workers. If it is killed, torch's own check does not help, because a
    worker that waits to write into a full pipe never gets to it.
    """
    leave_signals_to_the_parent()
    if parent := multiprocessing.parent_process():
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)
