"""Random numbers that depend only on (seed, split, index, purpose, part)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")

#: Numbers of the splits and purposes; captions and questions have streams of their own.
SPLITS = {"train": 0, "validation": 1, "held-out": 2}
PURPOSES = {"picture": 0, "captions": 1, "questions": 2, "question by place": 3}


class Draws:
    """A stream of random numbers.

    It uses the bits of numpy's Philox, which numpy promises never to change, and not the methods of a Generator, whose
    algorithms may change.

    Raises:
        ValueError: the split is unknown, or the seed, the index or the part is not in [0, 2**64).
    """

    def __init__(self, seed: int, split: str, index: int, purpose: str, part: int = 0) -> None:
        if split not in SPLITS:
            raise ValueError(f"got the split {split!r}, but there are {', '.join(SPLITS)}")
        for name, value in (("seed", seed), ("index", index), ("part", part)):
            if not 0 <= value < 2**64:
                raise ValueError(f"got the {name} {value}, but it must be 0 or more, and below 2**64")
        key = np.array([seed, SPLITS[split]], np.uint64)
        # Philox counts up in the first word, so two streams could only meet after 2**64 draws.
        counter = np.array([0, index, PURPOSES[purpose], part], np.uint64)
        self._bits = np.random.Philox(key=key, counter=counter)
        self._stock: list[float] = []

    def share(self) -> float:
        """Return a uniform number in [0, 1)."""
        if not self._stock:
            raw = self._bits.random_raw(64)
            self._stock = ((raw >> np.uint64(11)) * 2.0**-53).tolist()
        return self._stock.pop()

    def between(self, low: float, high: float) -> float:
        """Return a uniform number in [low, high)."""
        return low + (high - low) * self.share()

    def chance(self, probability: float) -> bool:
        """Return True with the given probability."""
        return self.share() < probability

    def below(self, count: int) -> int:
        """Return a uniform integer in [0, count)."""
        return int(self.share() * count)

    def pick(self, choices: Sequence[T]) -> T:
        """Return one of the choices, all equally likely."""
        return choices[self.below(len(choices))]
