"""Attention of transformers that are read a few positions at a time: a cache of fixed size, and how it is attended to.

Shape letters: B rows, n positions of now, N positions of the cache, H heads, G heads of keys and values (H, or a
divisor of it), d width of a head. Queries are (B, H, n, d); keys and values (B, G, n, d).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

#: Attention of queries, keys and values of now: what the block does not know, a mask or a cache, is inside.
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass
class Cache:
    """Keys and values of the positions that a model has read, with room for all."""

    #: Keys (B, G, N, d) of each block.
    keys: list[Tensor]
    values: list[Tensor]
    #: (B, N), bool, False at padding, which is never attended to; None without padding.
    visible: Tensor | None = None
    #: (B, N, C), codes at the positions, for an encoder whose projector reads those of neighbours; None for others.
    codes: Tensor | None = None
    #: Number of positions that it holds.
    length: int = 0

    @classmethod
    def empty(cls, blocks: int, shape: tuple[int, int, int, int], like: Tensor) -> Cache:
        """Return an empty cache for a number of blocks; shape is (B, G, N, d), dtype and device are those of ``like``.

        It is of zeros: :func:`attend_at` multiplies what is not seen by nought.
        """
        return cls([like.new_zeros(shape) for _ in range(blocks)], [like.new_zeros(shape) for _ in range(blocks)])

    @property
    def capacity(self) -> int:
        """Number N of positions that it has room for."""
        return self.keys[0].shape[2]

    def tensors(self) -> list[Tensor]:
        """Return all that it holds."""
        return [*self.keys, *self.values, *(x for x in (self.visible, self.codes) if x is not None)]

    def keep(self, rows: int) -> None:
        """Forget all rows but the first ``rows``."""
        self.keys, self.values = [x[:rows] for x in self.keys], [x[:rows] for x in self.values]
        self.visible = None if self.visible is None else self.visible[:rows]
        self.codes = None if self.codes is None else self.codes[:rows]

    def cut(self, length: int) -> None:
        """Forget all positions but the first ``length``."""
        self.length = min(self.length, length)

    def seen(self, count: int) -> Tensor | None:
        """Return what the next ``count`` positions attend to, as the mask of :func:`attend_with_cache`."""
        end = self.length + count
        visible = None if self.visible is None else self.visible[:, None, None, :end]
        if count == 1 or (self.length == 0 and visible is None):
            return visible
        causal = torch.ones(count, end, dtype=torch.bool, device=self.keys[0].device).tril(self.length)
        return causal[None, None] if visible is None else causal & visible

    def seen_at(self, positions: Tensor) -> Tensor:
        """Return what positions (n,) attend to, (B, 1, n, N) or (1, 1, n, N), bool: themselves and those before."""
        seen = (torch.arange(self.capacity, device=positions.device) <= positions[:, None])[None, None]
        return seen if self.visible is None else seen & self.visible[:, None, None]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attend to all keys, or where a mask, bool, allows it."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])


def attend_causally(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend to the position itself and those before it."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])


def attend_with_cache(
    q: Tensor, k: Tensor, v: Tensor, *, keys: Tensor, values: Tensor, start: int, mask: Tensor | None = None
) -> Tensor:
    """Put k and v into a cache (B, G, N, d) at ``start``, and attend to what it then holds.

    Args:
        q: queries of n positions.
        k: keys of the same positions.
        v: values of the same positions.
        keys: keys of the cache.
        values: values of the cache.
        start: positions that the cache holds.
        mask: where to attend, bool; None, for one position or for a start of 0: to itself and those before it.
    """
    end = start + q.shape[2]
    keys[:, :, start:end], values[:, :, start:end] = k, v
    keys, values = keys[:, :, :end], values[:, :, :end]
    return attend_causally(q, keys, values) if mask is None and q.shape[2] > 1 else attend(q, keys, values, mask)


def attend_at(
    q: Tensor, k: Tensor, v: Tensor, *, keys: Tensor, values: Tensor, positions: Tensor, seen: Tensor
) -> Tensor:
    """Do as :func:`attend_with_cache` does for positions (n,), with shapes that do not depend on them.

    Args:
        q: queries of the positions.
        k: keys of the positions.
        v: values of the positions.
        keys: keys of the cache.
        values: values of the cache.
        positions: a tensor, for ``torch.compile``.
        seen: where to attend; see :meth:`Cache.seen_at`.
    """
    keys.index_copy_(2, positions, k.to(keys.dtype))
    values.index_copy_(2, positions, v.to(values.dtype))
    return attend(q, keys, values, seen)
