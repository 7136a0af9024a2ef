"""How much of a codebook is in use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

#: Number of ids of a level that wait at least until they are sorted among those counted before.
_WAITING = 2**18


class CodebookUse(NamedTuple):
    """Figures that say how many codes are in use, and how evenly; scalars, float64."""

    #: Share of the codebook that occurs, in [0, 1].
    used: Tensor
    #: exp(entropy) of the ids, in [1, K]: the number of codes that, used evenly, would be as diverse.
    perplexity: Tensor


def codebook_use(counts: Tensor, size: int) -> CodebookUse:
    """Return the use of a codebook of ``size`` codes from the occurrences of its ids, int64.

    Ids that do not occur may be left out.

    >>> use = codebook_use(torch.tensor([5, 5]), 4)
    >>> use.used.item(), round(use.perplexity.item(), 6)
    (0.5, 2.0)
    """
    shares = counts.double() / counts.sum().clamp_min(1)
    entropy = -torch.special.xlogy(shares, shares).sum()
    return CodebookUse((counts > 0).double().sum() / size, entropy.exp())


class IdCounts:
    """Occurrences of the ids of each level. Only ids that occur are kept, because a codebook may have 2^28 of them.

    Args:
        sizes: codebook size of each level.

    >>> counts = IdCounts((4, 2**28))
    >>> counts.add(torch.tensor([[1, 7], [3, 7]]))
    >>> [(round(float(use.used), 2), round(float(use.perplexity), 6)) for use in counts.use()]
    [(0.5, 2.0), (0.0, 1.0)]
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self._levels = [_LevelCounts(size) for size in sizes]

    def add(self, ids: Tensor) -> None:
        """Count ids (..., Q)."""
        for level, of_level in zip(self._levels, ids.unbind(-1), strict=True):
            level.add(of_level)

    def use(self) -> list[CodebookUse]:
        """Return the use of each level's codebook."""
        return [level.use() for level in self._levels]


class _LevelCounts:
    def __init__(self, size: int) -> None:
        self._size = size
        self._ids = self._counts = torch.empty(0, dtype=torch.int64)
        self._waiting: list[Tensor] = []

    def add(self, ids: Tensor) -> None:
        self._waiting.append(ids.flatten().cpu())
        # Sorting the more ids at a time, the more are counted, keeps the cost per id nearly constant.
        if sum(map(len, self._waiting)) >= max(_WAITING, len(self._ids)):
            self._merge()

    def use(self) -> CodebookUse:
        self._merge()
        return codebook_use(self._counts, self._size)

    def _merge(self) -> None:
        ids = torch.cat([self._ids, *self._waiting])
        counts = torch.cat([self._counts, torch.ones(len(ids) - len(self._ids), dtype=torch.int64)])
        self._ids, places = torch.unique(ids, return_inverse=True)
        self._counts = torch.zeros_like(self._ids).index_add_(0, places, counts)
        self._waiting = []
