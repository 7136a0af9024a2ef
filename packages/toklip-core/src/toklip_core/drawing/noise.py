"""Random numbers of drawing: a function of seed, position and level alone, whatever is drawn before or beside it.

Shape letters: B pictures, N positions, n some of them, L levels of a position, K_q size of level q.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Noise(Protocol):
    """Random numbers of all positions of some pictures."""

    def at(self, first: int, count: int) -> list[Tensor]:
        """Return the numbers of ``count`` positions from ``first`` on for each level, as ``choose_ids`` takes them."""

    def drop(self, positions: int) -> None:
        """Free the memory of the first ``positions`` positions, which are drawn."""


class UniformNoise:
    """One number per level of a position, uniform in [0, 1): at(...) returns (B, n) for each level.

    Args:
        seeds: one seed per picture.
        count: number N of positions.
        sizes: size of each level.
        device: device of the numbers.
    """

    def __init__(self, seeds: Sequence[int], count: int, sizes: Sequence[int], device: torch.device) -> None:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        numbers = [torch.rand(count, len(sizes), generator=generator) for generator in generators]
        self._numbers = torch.stack(numbers).to(device)

    def at(self, first: int, count: int) -> list[Tensor]:
        """Return the numbers (B, n) of each level."""
        return list(self._numbers[:, first : first + count].unbind(-1))

    def drop(self, positions: int) -> None:
        """Do nothing: there is one number for each id."""


class GumbelNoise:
    """One number per id of the codebook, with Gumbel's distribution: at(...) returns (B, n, K_q) for each level.

    The numbers of a position come from a generator of its own, keyed by seed and position, when they are first needed.
    Those of all positions at once would be 1 GB for 1024 positions of 262,144 ids.

    Args:
        seeds: one seed per picture.
        count: number N of positions.
        sizes: size K_q of each level.
        device: device of the numbers.
    """

    def __init__(self, seeds: Sequence[int], count: int, sizes: Sequence[int], device: torch.device) -> None:
        self._seeds, self._count, self._sizes, self._device = seeds, count, sizes, device
        #: Position -> numbers (B, K_q) of each level.
        self._rows: dict[int, list[Tensor]] = {}

    def at(self, first: int, count: int) -> list[Tensor]:
        """Return the numbers (B, n, K_q) of each level."""
        for position in range(first, first + count):
            if position not in self._rows:
                self._rows[position] = [self._row(position, level) for level in range(len(self._sizes))]
        rows = [self._rows[position] for position in range(first, first + count)]
        return [torch.stack(of_level, dim=1) for of_level in zip(*rows, strict=True)]

    def drop(self, positions: int) -> None:
        """Free the numbers of the first ``positions`` positions; they come back if they are asked for."""
        self._rows = {position: row for position, row in self._rows.items() if position >= positions}

    def _row(self, position: int, level: int) -> Tensor:
        numbers = np.empty((len(self._seeds), self._sizes[level]))
        for own, seed in zip(numbers, self._seeds, strict=True):
            key = np.array([seed, level * self._count + position], dtype=np.uint64)
            np.random.Generator(np.random.Philox(key=key)).standard_exponential(out=own)
        return torch.from_numpy(-np.log(numbers)).float().to(self._device)
