"""``toklip encode``: encodes pictures into a token store.

    worker processes: entries -> RGB -> square of 8-bit levels --pipe--> this process: models -> rows -> parts

An encode may be killed at any moment, and the same call resumes it. It skips pictures whose keys are in complete parts
of the store, and reads all others again.
"""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import multiprocessing.process
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Self

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from toklip_core.config import Compute, progress_bar, refuse_missing_device
from toklip_core.pictures import (
    InputFile,
    PictureError,
    Resize,
    count_of,
    entries,
    find_pictures,
    read_metadata,
    resized,
    share_of_rank,
    share_of_worker,
    upright_crops,
)
from toklip_core.store.columns import row_maker
from toklip_core.store.format import StoreInfo, UnreadablePicture, part_paths, refuse_other, report_paths
from toklip_core.store.locks import writing
from toklip_core.store.reader import TokenStore
from toklip_core.store.settings import EncodeSettings
from toklip_core.store.writer import PartWriter, UnreadableLog, fullness_explained
from toklip_core.training import held_back, leave_signals_to_the_parent

_DIGEST_BYTES = 15  # at 1e9 keys two agree with a probability below 1e-18
_SLOT_BYTES = 2048  # for the key that a worker reads; nearly all keys are shorter


@dataclass(frozen=True, kw_only=True)
class EncodeReport:
    """Report of one call of :func:`encode_pictures`, for its rank alone."""

    store: str
    #: Number of pictures encoded by this call.
    pictures: int
    #: Number of pictures that were in the store before.
    skipped: int
    unreadable: int
    #: First unreadable picture, as "key: reason".
    first_unreadable: str
    seconds: float
    #: Whether ``stop`` ended the call early.
    stopped: bool
    rank: int

    def as_json(self) -> dict[str, str | int | float | bool]:
        """Return the report as JSON data."""
        return asdict(self) | {"pictures_per_second": self.pictures / self.seconds}

    def as_text(self) -> str:
        """Return the report as one line of text, and another one if pictures were unreadable."""
        text = f"{self.pictures} picture{'s' * (self.pictures != 1)} encoded into {self.store} in {self.seconds:.1f} s"
        text += f" ({self.pictures / self.seconds:.1f} a second)"
        if self.skipped:
            text += f"; {self.skipped} were there before"
        if self.stopped:
            text += "; stopped before the end: the same command goes on"
        if self.unreadable:
            folder = next((path.parent for path in report_paths(Path(self.store))), None)
            seen = "" if folder is None else f", see {folder}"
            text += f"\n{self.unreadable} could not be read{seen}; the first: {self.first_unreadable}"
        return text


def encode_pictures(
    inputs: Iterable[Path | str],
    store: Path | str,
    settings: EncodeSettings,
    *,
    compute: Compute = Compute(),
    rank: int = 0,
    world_size: int = 1,
    stop: Callable[[], bool] | None = None,
) -> EncodeReport:
    """Write ids and features of pictures into a token store, or resume an earlier call for the same store.

    Pictures that cannot be read are listed in ``.STORE.unreadable`` beside the store, and tried again by the next call.

    Args:
        inputs: files, folders, globs, tars, scenes; see :func:`toklip_core.pictures.find_pictures`.
        store: folder of the store; it is created if missing.
        settings: contents of the store.
        compute: device, number of processes that read pictures, and number of pictures at a time. The dtype bfloat16 is
            faster and changes some ids.
        rank: number of this process among ``world_size`` processes, which share the pictures, write their own parts,
            and never wait for each other.
        stop: function that is called after every batch; once it returns True, the encoded pictures are written and the
            call returns.

    Raises:
        FileNotFoundError: an input or weights are missing, or there is no picture.
        LookupError: no tokenizer or model has this name.
        ValueError: the store has other settings, an argument does not fit, or no picture can be read.
        OSError: the store cannot be written, or a process that reads pictures died, usually because memory ran out. The
            encoded pictures are written, and the message names the picture that was being read.
    """
    started = time.perf_counter()
    path = Path(store)
    if path.is_dir() and any(Path(item).is_dir() and path.samefile(item) for item in inputs):
        raise ValueError(f"got {store} as the store and as a folder of pictures; name another folder for the store")
    refuse_missing_device(compute.device)
    found = find_pictures(inputs, max_pixels=compute.max_pixels)
    read_metadata(found, said=rank == 0)
    sources = share_of_rank(sorted(found, key=_place) if settings.shuffle else found, rank, world_size)
    maker = row_maker(settings, dtype=compute.dtype)
    info = maker.info
    with fullness_explained(path), writing(path, rank, world_size):
        done, cropped = _Keys(_held_keys(path, info)), info.augment is not None
        work = _Work(sources, done, maker.sizes, cropped, info.resize, compute.batch_size, compute.max_pixels)
        maker.to(compute.device)
        writer = PartWriter(path, info, rank=rank, world_size=world_size)
        log = UnreadableLog(path, rank=rank, world_size=world_size)
        counts = _Counts()
        written = time.perf_counter()
        with (
            progress_bar(count_of(sources), shown=compute.progress) as bar,
            closing(_batches(work, compute.workers)) as batches,
        ):
            try:
                for batch in batches:
                    if batch.keys:
                        rows = maker.rows(batch.levels, batch.crops)
                        writer.add(batch.keys, rows.ids, batch.captions, rows.features, rows.crops)
                    for row in batch.unreadable:
                        log.add(row)
                    bar.update(counts.add(batch))
                    late = time.perf_counter() - written >= settings.part_seconds
                    if len(writer) >= settings.part_rows or writer.nbytes >= settings.part_bytes or late:
                        writer.flush()
                        written = time.perf_counter()
                    if stopped := stop is not None and stop():
                        break
            except Exception:  # after any error, write the pictures that have been encoded
                writer.flush()
                raise
        writer.flush()
    if world_size == 1 and not stopped:  # one rank of several does not know what the others have read
        _refuse_nothing(counts, sources)
    return EncodeReport(
        store=str(path), **vars(counts), seconds=time.perf_counter() - started, stopped=stopped, rank=rank
    )


class _Keys:
    """Set of a store's keys, with 16 bytes each: 1e8 of them take 1.6 GB, and as a set of str 13 GB."""

    def __init__(self, keys: Iterable[str]) -> None:
        digests = np.frombuffer(b"".join(map(self._digest, keys)), dtype=f"S{_DIGEST_BYTES + 1}")
        self._sorted = np.sort(digests)

    def __contains__(self, key: str) -> bool:
        digest = np.bytes_(self._digest(key))
        place = int(np.searchsorted(self._sorted, digest))
        return place < len(self._sorted) and bool(self._sorted[place] == digest)

    @staticmethod
    def _digest(key: str) -> bytes:
        # The last byte is not zero, because numpy drops zero bytes at the end of a string.
        return blake2b(key.encode(), digest_size=_DIGEST_BYTES).digest() + b"."


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


class _Batch(NamedTuple):
    """Results of a worker: squares (n, size, size, 3) uint8 of each size, their keys, and unreadable pictures."""

    keys: list[str]
    captions: list[str | None]
    levels: list[np.ndarray[Any, Any]]
    crops: np.ndarray[Any, Any] | None
    unreadable: list[UnreadablePicture]
    skipped: int


@dataclass
class _Counts:
    pictures: int = 0
    skipped: int = 0
    unreadable: int = 0
    first_unreadable: str = ""

    def add(self, batch: _Batch) -> int:
        """Add the counts of a batch; return the number of pictures that it has gone through."""
        self.pictures += len(batch.keys)
        self.skipped += batch.skipped
        self.unreadable += len(batch.unreadable)
        if batch.unreadable and not self.first_unreadable:
            self.first_unreadable = f"{batch.unreadable[0].key}: {batch.unreadable[0].reason}"
        return len(batch.keys) + batch.skipped + len(batch.unreadable)


@dataclass(frozen=True)
class _Work(IterableDataset[_Batch]):
    """Data set that reads pictures; in a worker process, its share of them.

    Batches are numpy arrays, which go through a pipe. Tensors would go through /dev/shm, which has 64 MB in containers.
    """

    sources: list[InputFile]
    done: _Keys
    sizes: list[int]
    cropped: bool
    resize: Resize
    batch_size: int
    max_pixels: int
    reading: _Reading | None = None

    def __iter__(self) -> Iterator[_Batch]:
        worker = get_worker_info()
        sources = self.sources if worker is None else share_of_worker(self.sources, worker.id, worker.num_workers)
        keys: list[str] = []
        captions: list[str | None] = []
        squares: list[list[np.ndarray[Any, Any]]] = []
        unreadable: list[UnreadablePicture] = []
        skipped = 0
        for entry in entries(sources):
            if entry.key in self.done:
                skipped += 1
                continue
            self._say(entry.key)
            try:
                image = entry.image()
                of_sizes = [np.asarray(resized(image, size, self.resize)) for size in self.sizes]
                if self.cropped:
                    of_sizes.append(upright_crops(image, self.sizes[0], self.resize))
                caption = entry.caption()
            except (PictureError, OSError) as error:
                unreadable.append(UnreadablePicture(entry.key, str(entry.path), str(error)))
                continue
            except MemoryError:
                reason = "there was not enough memory to read it"
                unreadable.append(UnreadablePicture(entry.key, str(entry.path), reason))
                continue
            keys.append(entry.key)
            captions.append(caption)
            squares.append(of_sizes)
            if len(keys) == self.batch_size:
                self._say("")  # while it waits, it reads nothing
                yield _Batch(keys, captions, *self._stacked(squares), unreadable, skipped)
                keys, captions, squares, unreadable, skipped = [], [], [], [], 0
        self._say("")
        yield _Batch(keys, captions, *self._stacked(squares), unreadable, skipped)

    def _say(self, key: str) -> None:
        worker = get_worker_info()
        if self.reading is not None and worker is not None:
            self.reading.say(worker.id, key)

    def _stacked(
        self, squares: list[list[np.ndarray[Any, Any]]]
    ) -> tuple[list[np.ndarray[Any, Any]], np.ndarray[Any, Any] | None]:
        levels = [np.stack(of_one_size) for of_one_size in zip(*squares, strict=True)]
        return levels, levels.pop() if self.cropped and levels else None


def _batches(work: _Work, workers: int) -> Generator[_Batch]:
    """Yield the batches of the workers, and raise their errors here.

    If a worker dies, raise _WorkerDied, which names the picture that it was reading.
    """
    total = count_of(work.sources)
    if total is not None:  # starting a process takes longer than reading less than a batch
        workers = min(workers, math.ceil(total / work.batch_size))
    if workers == 0:
        yield from work
        return
    reading = _Reading(workers)
    others = multiprocessing.active_children()
    with warnings.catch_warnings():
        # More processes than cores make sense if they wait for a disk.
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        loader: DataLoader[_Batch] = DataLoader(
            replace(work, reading=reading),
            batch_size=None,
            num_workers=workers,
            collate_fn=_as_it_is,
            worker_init_fn=_follow_the_parent,
        )
        try:
            with held_back():
                batches = iter(loader)
        except BaseException:
            _end_all_but(others)
            raise
    failure: Exception | None = None
    with _DeathsAtNext() as deaths:
        try:
            while (batch := deaths.next(batches)) is not None:
                yield batch
        except Exception as error:
            failure = error.with_traceback(None)  # because its frames would keep torch's workers alive
            if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
                failure = _WorkerDied(_death_in_words(reading.of_the_dead(), work.max_pixels))
        finally:
            _end_all_but(others)
            del batches
    if failure is not None:  # raised here, where nothing keeps them alive
        raise failure


def _end_all_but(others: Sequence[multiprocessing.process.BaseProcess]) -> None:
    """Kill the workers. They ignore SIGTERM, so this process would wait for them when it ends.

    Nothing is lost, because their pictures are read again.
    """
    for child in multiprocessing.active_children():
        if child not in others:
            child.kill()


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

    def next(self, batches: Iterator[_Batch]) -> _Batch | None:
        """Return the next batch, None at the end; RuntimeError if a worker died."""
        self._waiting = True
        try:
            self._note(0, None)  # for a worker that died before
            return next(batches, None)
        finally:
            self._waiting = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._waiting and callable(self._torch):
            self._torch(number, frame)


def _as_it_is(batch: Any) -> Any:  # noqa: ANN401  (a DataLoader's collate_fn is typed so)
    return batch


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


def _held_keys(path: Path, info: StoreInfo) -> Iterable[str]:
    if not part_paths(path):
        return ()
    held = TokenStore(path)
    refuse_other(info, held.info, what="this encode", store=path)
    return held.keys()


def _place(source: InputFile) -> bytes:
    """Return the sort key of a picture in a shuffled encode, a function of its key, equal for all ranks and calls."""
    return blake2b(source.key.encode(), digest_size=8, person=b"order").digest()


def _refuse_nothing(counts: _Counts, sources: list[InputFile]) -> None:
    if counts.pictures or counts.skipped:
        return
    if counts.unreadable:
        raise ValueError(f"none of {counts.unreadable} pictures can be read; the first is {counts.first_unreadable}")
    raise FileNotFoundError(f"no picture in {', '.join(str(source.path) for source in sources)}")
