"""Who may write into a token store at one time: the ranks of one encode, each in one process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from toklip_core.locks import alone, together


@contextmanager
def writing(store: Path, rank: int, world_size: int) -> Iterator[None]:
    """Be the writer of a rank; OSError if another process is, or if one writes that shares the pictures otherwise.

    Ranks of one ``world_size`` have pictures of their own, those of two do not: both would write the same ones. So a
    file says how many ranks there are. Each holds a shared lock on it, and only who holds it alone may change it; and
    each holds its own file alone.

    The locks are those of :mod:`toklip_core.locks`.
    """
    store.mkdir(parents=True, exist_ok=True)
    with (store / ".world-size.lock").open("a+") as ranks, (store / f".rank-{rank:05d}.lock").open("a") as own:
        _join(ranks, store, world_size)
        if not alone(own):
            raise OSError(f"another process is encoding into {store} as rank {rank}; wait for its end")
        yield


def _join(ranks: IO[str], store: Path, world_size: int) -> None:
    if alone(ranks):
        ranks.truncate(0)
        ranks.write(str(world_size))
        ranks.flush()
    together(ranks)  # waits no longer than another takes for the three lines above
    ranks.seek(0)
    if (there := ranks.read()) != str(world_size):
        raise OSError(
            f"an encode by {there} processes is at work in {store}, and this is one of {world_size}, which would "
            "write the same pictures; wait for its end"
        )

