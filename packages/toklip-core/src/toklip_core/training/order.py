"""Order of samples: seeds, shuffles and windows that depend only on (seed, epoch)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torch.utils.data import Sampler

from toklip_core.config import RunConfig


def window_order(groups: Sequence[int], window: int, *, seed: int, epoch: int) -> Tensor:
    """Return a permutation (rows,) that shuffles groups, and then rows within windows of whole groups.

    Args:
        groups: number of rows of each group; a row is read together with its group.
        window: maximum number of rows of a window, unless a single group has more.
        seed: seed of the run.
        epoch: number of the epoch.

    >>> order = window_order([2, 2, 2], window=4, seed=0, epoch=0)
    >>> sorted(order.tolist())
    [0, 1, 2, 3, 4, 5]
    """
    starts = [0, *accumulate(groups)]
    draw = torch.Generator().manual_seed(derived_seed(seed, epoch))
    windows: list[list[Tensor]] = [[]]
    held = 0
    for group in torch.randperm(len(groups), generator=draw).tolist():
        rows = torch.arange(starts[group], starts[group + 1])
        if held and held + len(rows) > window:
            windows.append([])
            held = 0
        windows[-1].append(rows)
        held += len(rows)
    together = (torch.cat(rows) for rows in windows)
    return torch.cat([rows[torch.randperm(len(rows), generator=draw)] for rows in together])


def derived_seed(*parts: int) -> int:
    """Return a seed below 2^63 that depends on all parts, such as (seed, epoch, index).

    >>> derived_seed(0, 1, 2) == derived_seed(0, 1, 2), derived_seed(0, 1, 2) == derived_seed(0, 2, 1)
    (True, False)
    """
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


def shuffled(size: int, seed: int, epoch: int) -> Tensor:
    """Return the permutation of ``range(size)`` in which an epoch visits its samples.

    >>> sorted(shuffled(4, seed=0, epoch=0).tolist())
    [0, 1, 2, 3]
    """
    return torch.randperm(size, generator=torch.Generator().manual_seed(derived_seed(seed, epoch)))


class SampleKeys(Sampler[list[tuple[int, int]]]):
    """Sampler of the keys (epoch, index) of this process's micro-batches, from a step on.

    Sample number p of the run is sample p mod size of epoch p // size, in that epoch's order. A batch may span two
    epochs, and no sample is dropped.

    Which samples a batch has does not depend on the number of processes. If samples are ``grouped``, because each is
    read together with those beside it, the batch is dealt in the order of their indices: a process then reads its share
    of the groups of a window, and not all of them.
    """

    def __init__(
        self,
        size: int,
        run: RunConfig,
        start: int,
        process: int,
        processes: int,
        order: Callable[[int, int, int], Tensor],
        *,
        grouped: bool = False,
    ) -> None:
        assert size > 0, "no samples"
        self._size, self._run, self._start = size, run, start
        self._sorted = grouped and processes > 1
        self._process, self._processes, self._order = process, processes, order
        self._epochs: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return (self._run.steps - self._start) * self._run.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        length = self._run.batch_size // (self._run.accumulate * self._processes)
        own = slice(self._process * length, (self._process + 1) * length)
        for micro in range(self._start * self._run.accumulate, self._run.steps * self._run.accumulate):
            begin = micro * self._processes * length
            positions = range(begin, begin + self._processes * length)
            if self._sorted:
                yield sorted(map(self._key, positions))[own]
            else:
                yield [self._key(position) for position in positions[own]]

    def _key(self, position: int) -> tuple[int, int]:
        epoch, place = divmod(position, self._size)
        if epoch not in self._epochs:
            self._epochs = {old: places for old, places in self._epochs.items() if old == epoch - 1}
            self._epochs[epoch] = self._order(self._size, self._run.seed, epoch)
        return epoch, int(self._epochs[epoch][place])
