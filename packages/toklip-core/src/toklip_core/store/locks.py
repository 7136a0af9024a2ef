"""Locks of a token store, which only the ranks of one encode may write to, each in one process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from toklip_core.files import folder_lock, lock_exclusively, lock_shared


@contextmanager
def writing(store: Path, rank: int, world_size: int) -> Iterator[None]:
    """Lock a store for one rank while inside; OSError if another process has that rank or another ``world_size``.

    Ranks of the same ``world_size`` have different pictures, but ranks of two different ones would write the same ones.
    So each rank holds a shared lock on the file of its ``world_size``, while nobody may hold that of another one, and
    an exclusive lock on its own file. The files are empty, so even Polars ignores them.

    :mod:`toklip_core.files.locks` implements the locks.
    """
    store.mkdir(parents=True, exist_ok=True)
    of_all, own = f".world-size-{world_size}.lock", f".rank-{rank:05d}.lock"
    with (store / of_all).open("a+") as ranks, (store / own).open("a") as mine:
        _join(ranks, store, of_all, world_size)
        if not lock_exclusively(mine):
            raise OSError(f"another process is encoding into {store} as rank {rank}; wait for its end")
        yield


def _join(ranks: IO[str], store: Path, of_all: str, world_size: int) -> None:
    with folder_lock(store):
        for path in store.glob(".world-size-*.lock"):
            if path.name == of_all:
                continue
            with path.open("a") as others:
                if not lock_exclusively(others):
                    there = path.name.removeprefix(".world-size-").removesuffix(".lock")
                    raise OSError(
                        f"an encode by {there} processes is at work in {store}, and this is one of {world_size}, which "
                        "would write the same pictures; wait for its end"
                    )
        lock_shared(ranks)
