"""``toklip encode``: encodes pictures into a token store.

    built-in   worker processes: entries -> squares of RGB values --pipe--> this process: models -> rows -> parts
    ray        actors:           entries -> squares -> models -> rows --------> this process: parts

An encode may be killed at any moment, and the same call resumes it. It skips pictures whose keys are in complete parts
of the store, and reads all others again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Literal

from toklip_core.config import Compute, progress_bar, refuse_missing_device
from toklip_core.pictures import InputFile, count_of, find_pictures, read_metadata, share_of_rank
from toklip_core.store.columns import RowMaker, row_maker
from toklip_core.store.format import refuse_other_files, report_paths
from toklip_core.store.key_set import KeySet
from toklip_core.store.locks import writing
from toklip_core.store.ray_engine import encoded_by_ray
from toklip_core.store.reader import stored_keys
from toklip_core.store.reading import PictureWork, batches_of_workers
from toklip_core.store.settings import EncodeSettings
from toklip_core.store.tables import EncodedBatch
from toklip_core.store.writer import PartWriter, UnreadableLog, fullness_explained

#: What reads and encodes: processes of this machine, or actors of a Ray cluster.
Engine = Literal["built-in", "ray"]


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
            text += "; stopped before the end: run the same command again to continue"
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
    engine: Engine = "built-in",
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
        engine: "built-in" works on this machine; "ray" on the Ray cluster that this process has joined or RAY_ADDRESS
            names, else on one that it starts here. With it ``compute.workers`` is the number of actors, each with
            models of its own; 0: one per core of the cluster. Every node needs the pictures under the same paths, and
            the weights. This process loads them, too, for the metadata of the store.
        rank: number of this process among ``world_size`` processes, which share the pictures, write their own parts,
            and never wait for each other.
        stop: function that is called after every batch, and each second while Ray has none; once it returns True, the
            encoded pictures are written and the call returns.

    Raises:
        FileNotFoundError: an input or weights are missing, or there is no picture.
        LookupError: no tokenizer or model has this name, or Ray is not installed.
        ValueError: the store has other settings, an argument does not fit, or no picture can be read.
        OSError: the store cannot be written, or a process that reads pictures died, usually because memory ran out. The
            encoded pictures are written, and the message names the picture that was being read; with Ray the first and
            the last of its share.
    """
    started = time.perf_counter()
    inputs, path = list(inputs), Path(store)
    if path.is_dir() and any(Path(item).is_dir() and path.samefile(item) for item in inputs):
        raise ValueError(f"got {store} as the store and as a folder of pictures; name another folder for the store")
    refuse_other_files(path)
    if engine == "built-in":  # the workers of a cluster may have what this machine lacks
        refuse_missing_device(compute.device)
    elif world_size > 1:
        wanted = "start one process, because Ray shares the work itself"
        raise ValueError(f"got {world_size} processes and --engine ray; {wanted}")
    found = find_pictures(inputs, max_pixels=compute.max_pixels)
    read_metadata(found, said=rank == 0)
    sources = share_of_rank(sorted(found, key=_place) if settings.shuffle else found, rank, world_size)
    maker = row_maker(settings, dtype=compute.dtype)
    with fullness_explained(path), writing(path, rank, world_size):
        done = KeySet(stored_keys(path, maker.info, what="this encode"))
        work = PictureWork(sources, done, maker.reader(compute.batch_size), compute.max_pixels)
        if engine == "ray":
            by_engine = encoded_by_ray(work, settings, maker.info, compute)
        else:
            by_engine = _encoded_here(work, maker, compute)
        writer = PartWriter(path, maker.info, rank=rank, world_size=world_size)
        log = UnreadableLog(path, rank=rank)
        counts = _Counts()
        with progress_bar(count_of(sources), shown=compute.progress) as bar, closing(by_engine) as batches:

            def count(batch: EncodedBatch) -> None:
                if not bar.disable:
                    bar.initial += batch.skipped  # they were there before, so they tell nothing about the speed
                bar.update(counts.add(batch))

            stopped = _write(batches, writer, log, settings, count, stop)
    if world_size == 1 and not stopped:  # one rank of several does not know what the others have read
        _refuse_nothing(counts, sources)
    return EncodeReport(
        store=str(path), **vars(counts), seconds=time.perf_counter() - started, stopped=stopped, rank=rank
    )


def _encoded_here(work: PictureWork, maker: RowMaker, compute: Compute) -> Generator[EncodedBatch]:
    """Yield what the built-in engine encodes: processes read, and this one runs the models."""
    maker.to(compute.device)
    with closing(batches_of_workers(work, compute.workers)) as batches:
        for batch in batches:
            yield maker.encoded(batch)


def _write(
    batches: Iterable[EncodedBatch],
    writer: PartWriter,
    log: UnreadableLog,
    settings: EncodeSettings,
    count: Callable[[EncodedBatch], object],
    stop: Callable[[], bool] | None,
) -> bool:
    """Write batches until they or ``stop`` end; return whether ``stop`` did."""
    written, stopped = time.perf_counter(), False
    try:
        for batch in batches:
            writer.add_table(batch.table)
            for row in batch.unreadable:
                log.add(row)
            count(batch)
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
    return stopped


@dataclass
class _Counts:
    pictures: int = 0
    skipped: int = 0
    unreadable: int = 0
    first_unreadable: str = ""

    def add(self, batch: EncodedBatch) -> int:
        """Add the counts of a batch; return the number of pictures that it has gone through."""
        encoded: int = batch.table.num_rows
        self.pictures += encoded
        self.skipped += batch.skipped
        self.unreadable += len(batch.unreadable)
        if batch.unreadable and not self.first_unreadable:
            self.first_unreadable = f"{batch.unreadable[0].key}: {batch.unreadable[0].reason}"
        return encoded + batch.skipped + len(batch.unreadable)


def _place(source: InputFile) -> bytes:
    """Return the sort key of a picture in a shuffled encode, a function of its key, equal for all ranks and calls."""
    return blake2b(source.key.encode(), digest_size=8, person=b"order").digest()


def _refuse_nothing(counts: _Counts, sources: list[InputFile]) -> None:
    if counts.pictures or counts.skipped:
        return
    if counts.unreadable:
        raise ValueError(f"none of {counts.unreadable} pictures can be read; the first is {counts.first_unreadable}")
    raise FileNotFoundError(f"no picture in {', '.join(str(source.path) for source in sources)}")
