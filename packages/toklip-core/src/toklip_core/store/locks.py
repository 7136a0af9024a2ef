"""Locks of a token store, which only the ranks of one encode may write to, each once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from toklip_core.files import folder_lock, held_alone, held_together


@contextmanager
def writing(store: Path, rank: int, world_size: int) -> Iterator[None]:
    """Lock a store for one rank while inside; OSError if another encode has that rank or another ``world_size``.

    Ranks of the same ``world_size`` have different pictures, but ranks of two different ones would write the same ones.
    So each rank holds a shared lock on the file of its ``world_size``, while nobody may hold that of another one, and
    an exclusive lock on its own file. The files are empty, so even Polars ignores them.

    :mod:`toklip_core.files.locks` implements the locks.
    """
    store.mkdir(parents=True, exist_ok=True)
    problem = f"another encode is at work in {store} as rank {rank}; wait for its end"
    with ExitStack() as held:
        with folder_lock(store):
            of_all = _refuse_other(store, world_size)
            held.enter_context(held_together(of_all, problem))
        held.enter_context(held_alone(store / f".rank-{rank:05d}.lock", problem))
        yield


def _refuse_other(store: Path, world_size: int) -> Path:
    """Return the file of a ``world_size``; OSError if a rank of another one is at work."""
    of_all = store / f".world-size-{world_size}.lock"
    for path in store.glob(".world-size-*.lock"):
        if path != of_all:
            there = path.name.removeprefix(".world-size-").removesuffix(".lock")
            problem = (
                f"an encode by {there} processes is at work in {store}, and this is one of {world_size}, which "
                "would write the same pictures; wait for its end"
            )
            with held_alone(path, problem):
                pass
    return of_all
