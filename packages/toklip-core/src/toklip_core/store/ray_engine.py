"""The engine Ray: actors of a cluster read and encode as the built-in engine does, and this process writes.

    sources -> shares --actors: entries -> BatchEncoder -> rows--> this process

A killed actor starts again and repeats the share that it was at. Ray drops as many batches as had arrived, and a share
has the same batches each time, so every row comes once.
"""

from __future__ import annotations

import logging
import math
import os
import platform
import signal
import textwrap
import threading
import time
from collections import deque
from collections.abc import Container, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from toklip_core.config import Compute
from toklip_core.files import one_line
from toklip_core.pictures import InputFile, entries
from toklip_core.store.batch_encoder import BatchEncoder
from toklip_core.store.format import StoreInfo, part_schema
from toklip_core.store.reading import PictureWork
from toklip_core.store.settings import EncodeSettings
from toklip_core.store.tables import EncodedBatch

_log = logging.getLogger(__name__)

# Number of batches per share of files: small enough to balance the actors, large enough that messages cost little.
_BATCHES_PER_SHARE = 8

# Limited, because a picture that exhausts the memory would kill every actor that retries it.
_RETRIES = 3

# Largest number of batches per actor that wait for this process.
_WAITING = 4

# Seconds until it is said that no actor has started.
_PATIENCE = 15


def encoded_by_ray(
    work: PictureWork, settings: EncodeSettings, info: StoreInfo, compute: Compute
) -> Generator[EncodedBatch]:
    """Yield what the actors encode, in the order in which it arrives; a batch without rows each second without one.

    Args:
        work: pictures, and the keys that are skipped.
        settings: contents of the store.
        info: metadata that the models of every actor must have.
        compute: settings of each actor; ``workers`` is the number of actors, 0 for one per core of the cluster.

    Raises:
        LookupError: Ray is not installed.
        ValueError: a picture's rows cannot be computed, or an actor has other models.
        OSError: the cluster or an actor cannot start, or an actor dies again and again, which the message says with
            the pictures of its share.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise LookupError("Ray is not installed: pip install 'toklip-core[ray]'") from error
    with _cluster(ray) as started:
        cores, gpus = (int(ray.cluster_resources().get(name, 0)) for name in ("CPU", "GPU"))
        workers = compute.workers or max(1, cores)
        shares = list(_shares(work.sources, workers, _BATCHES_PER_SHARE * compute.batch_size))
        workers = min(workers, len(shares))
        on_gpu = gpus > 0 and torch.device(compute.device).type == "cuda"
        make = ray.remote(
            num_cpus=1,
            num_gpus=1 / math.ceil(workers / gpus) if on_gpu else 0,
            max_restarts=-1,
            max_task_retries=_RETRIES,
        )(_Actor)
        encoder, done = BatchEncoder(settings, compute), ray.put(work.done)
        actors = [make.remote(encoder, info, Path.cwd()) for _ in range(workers)]
        try:
            nothing = EncodedBatch(part_schema(info).empty_table(), [], 0)
            yield from _gathered(ray, actors, shares, done, nothing)
        finally:
            for actor in [] if started else actors:
                ray.kill(actor)


class _Actor:
    """What runs on the cluster: an encoder, whose models the first share loads."""

    def __init__(self, encoder: BatchEncoder, info: StoreInfo, folder: Path) -> None:
        self._encoder, self._info, self._folder = encoder, info, folder

    def start(self) -> None:
        """Say that the actor runs."""

    def encode(self, share: list[InputFile], done: Container[str]) -> Iterator[EncodedBatch]:
        """Yield the rows of a share, without those whose keys are ``done``."""
        os.chdir(self._folder)  # pictures and weights have the paths that were typed there
        if self._encoder.info != self._info:
            raise ValueError(
                f"the models on {platform.node()} are not those of this machine; give every node the same weights and "
                "the same version of the toolkit"
            )
        yield from self._encoder.encoded(entries(share), done)


def _gathered(
    ray: Any,  # noqa: ANN401 - a module of an extra
    actors: list[Any],
    shares: list[list[InputFile]],
    done: Any,  # noqa: ANN401 - Ray's reference
    nothing: EncodedBatch,
) -> Iterator[EncodedBatch]:
    """Give each idle actor the next share; yield batches as they come. ``done`` is a KeySet in Ray's object store.

    While none comes, ``nothing`` is yielded each second, so that the caller can stop.
    """
    waiting, impatient = deque(shares), time.monotonic() + _PATIENCE
    # An actor that the cluster has no room for starts late or never, so it gets no share before.
    starting = {actor.start.remote(): actor for actor in actors}
    running: dict[Any, tuple[Any, list[InputFile]]] = {}
    while waiting or running:
        ready, _ = ray.wait([*starting, *running], num_returns=1, timeout=1)
        if not ready:
            if len(starting) == len(actors) and time.monotonic() > impatient:
                impatient = math.inf
                _log.warning("no actor has started yet; the Ray cluster may have no room; waiting (Ctrl-C ends)")
            yield nothing
            continue
        first = ready[0]
        if first in starting:
            with _failures_in_words(ray, "started"):
                ray.get(first)
            actor = starting.pop(first)
        else:
            actor, share = running[first]
            with _failures_in_words(ray, f"encoded the share from {share[0].key} to {share[-1].key}"):
                reference = next(first, None)
                batch = None if reference is None else ray.get(reference)
            if batch is not None:
                yield batch
                continue
            del running[first]
        if waiting:
            share = waiting.popleft()
            results = actor.encode.options(_generator_backpressure_num_objects=_WAITING).remote(share, done)
            running[results] = actor, share


@contextmanager
def _failures_in_words(ray: Any, what: str) -> Iterator[None]:  # noqa: ANN401 - a module of an extra
    """Raise what an actor raised, or OSError that says what it did when Ray gave it up."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        raise error.cause or error from None
    except ray.exceptions.RayError as error:
        reason = textwrap.shorten(str(error).strip().split("\n")[0], 60)
        raise OSError(
            f"Ray gave up an actor while it {what}; what was encoded is kept: run it again, without Ray if a picture "
            f"kills it, which the built-in engine names ({reason})"
        ) from error


def _shares(sources: list[InputFile], workers: int, files: int) -> Iterator[list[InputFile]]:
    """Yield shares: whole archives, or with fewer of them than workers every n-th picture of each; files in groups."""
    archives = [source for source in sources if source.is_archive]
    step = 1 if len(archives) >= workers else workers
    yield from ([replace(archive, start=start, step=step)] for archive in archives for start in range(step))
    rest = [source for source in sources if not source.is_archive]
    yield from (rest[start : start + files] for start in range(0, len(rest), files))


@contextmanager
def _cluster(ray: Any) -> Iterator[bool]:  # noqa: ANN401 - a module of an extra
    """Join the cluster of this process or of RAY_ADDRESS, else start one here; yield whether it ends afterwards."""
    if ray.is_initialized():
        yield False
        return
    address = os.environ.get("RAY_ADDRESS") or "local"  # with none, Ray joins any cluster that runs on this machine
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, include_dashboard=False, log_to_driver=False, logging_level="error")
    except Exception as error:  # Ray raises a bare Exception, ConnectionError or ValueError
        words = one_line(error, longest=200)
        raise OSError(f"the Ray cluster ({address}) did not start, or cannot be joined: {words}") from error
    if in_main_thread:  # Ray takes this signal for itself
        signal.signal(signal.SIGTERM, before)
    try:
        yield address == "local"
    finally:
        ray.shutdown()
