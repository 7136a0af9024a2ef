"""Classifier-free guidance, which combines the logits with and without the condition.

Shape letters: B pictures, R rows (B, or 2 B with the rows without the condition last), K ids, N positions of a
picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from toklip_core.config import LARGEST_SCALE, refuse_outside


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: logits are uncond + s (cond - uncond).

    Raises:
        ValueError: a value is out of its range.

    Source: Ho and Salimans, https://arxiv.org/abs/2207.12598; for the schedule, RAR, https://arxiv.org/abs/2411.00776.

    >>> Guidance(3.0, first=1, last=2).scales(4)
    [1.0, 3.0, 3.0, 1.0]
    """

    #: Scale s; 1 turns guidance off, 0 ignores the condition.
    scale: float
    #: First position with guidance, counted from 0; positions before it have s = 1.
    first: int = 0
    #: Last position with guidance; positions after it have s = 1; None: the last of all. LlamaGen's cfg_interval,
    #: which counts from the second position, plus 1.
    last: int | None = None
    #: Power p of the schedule 1 + (s - 1) (1 - cos(pi (i / N)^p)) / 2, for position i of N; None: s is constant.
    power: float | None = None

    def __post_init__(self) -> None:
        scale, first, last, power = self.scale, self.first, self.last, self.power
        powers = f"more than 0, up to {LARGEST_SCALE:g}"
        for name, value, fits, wanted in (
            ("guidance", scale, 0 <= scale <= LARGEST_SCALE, f"0 or more; 1 is none, {LARGEST_SCALE:g} the most"),
            ("first position of guidance", first, first >= 0, "0 or more"),
            ("last position of guidance", last, last is None or last >= first, f"{first}, its first, or more"),
            ("power of guidance", power, power is None or 0 < power <= LARGEST_SCALE, powers),
        ):
            refuse_outside(name, value, fits, wanted)

    def scales(self, count: int) -> list[float]:
        """Return the scale s of each of ``count`` positions; ValueError if the first with guidance is none of them."""
        refuse_outside(
            "first position of guidance", self.first, self.first < count, f"0 to {count - 1}, the picture's last"
        )
        last = count if self.last is None else self.last
        return [self._at(i, count) if self.first <= i <= last else 1.0 for i in range(count)]

    def _at(self, i: int, count: int) -> float:
        if self.power is None:
            return self.scale
        return 1 + (self.scale - 1) * 0.5 * (1 - math.cos(math.pi * (i / count) ** self.power))


def guide(logits: Tensor, batch: int, scale: float | Tensor) -> Tensor:
    """Return guided logits (B, K) for logits (R, K); if R = B there is no guidance, and they are returned unchanged.

    Args:
        logits: rows with the condition, and after them, if there are 2 B, those without it.
        batch: B.
        scale: s, a number, or a tensor (B, 1).
    """
    if len(logits) == batch:
        return logits
    with_it, without = logits.chunk(2)
    if isinstance(scale, Tensor):
        return torch.where(scale == 1, with_it, without + scale * (with_it - without))
    return with_it if scale == 1 else without + scale * (with_it - without)
