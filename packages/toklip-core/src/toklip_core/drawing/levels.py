"""Levels of ids: the numbers that a model predicts one after another at each position of a picture.

Most tokenizers are predicted as they are, with one level for each of their Q ids. A large id of bits (LFQ, BSQ) or of
channels (FSQ) is split into groups of them, because a head for 2^18 or 2^28 ids would be larger than the model. The id
of a table is one level, however large the table is: its rows have no order that could be split.

Shape letters: Q ids of a position, K_q codebook sizes, L >= Q levels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Self

import torch
from torch import Tensor

from toklip_core.embeddings import BitEmbedding, CodeEmbedding, ScalarEmbedding

#: Largest number of bits of a group that is one level; LlamaGen predicts ids of 14 bits by one head.
_WHOLE = 14
#: Number of bits of each level of a longer id, but for the first, which has the rest. Source: Open-MAGVIT2 predicts its
#: 18 bits as 6 and 12.
_GROUP = 12


@dataclass(frozen=True)
class IdLevels:
    """Split of the ids (..., Q) of a tokenizer into the levels (..., L) that a model predicts.

    An id is one level, or several whose sizes have its codebook size as their product; the first has the lowest digits.

    Raises:
        ValueError: the sizes of levels are not those of the codebooks.

    >>> levels = IdLevels(codebook_sizes=(2**18,), sizes=(2**6, 2**12))
    >>> levels.split(torch.tensor([[3 + 7 * 2**6]]))
    tensor([[3, 7]])
    >>> levels.join(torch.tensor([[3, 7]]))
    tensor([[451]])
    """

    #: Codebook size K_q of each id.
    codebook_sizes: tuple[int, ...]
    #: Size of each level.
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if list(map(math.prod, self._groups)) != list(self.codebook_sizes):
            raise ValueError(
                f"got levels of {self.sizes} for codebooks of {self.codebook_sizes}; wanted one level for each id, or "
                "several with the codebook size as their product"
            )

    @classmethod
    def of_embedding(cls, embedding: CodeEmbedding) -> Self:
        """Return the levels in which a model predicts the ids of a tokenizer.

        Raises:
            ValueError: the code of a position depends on other ids too, so ids cannot be drawn one after another.
        """
        if not embedding.is_local:
            raise ValueError(
                "the tokenizer has a pyramid of ids, in which a code depends on ids of every scale, so no model can "
                "draw it id by id; name a tokenizer with one grid of ids"
            )
        sizes = embedding.codebook_sizes
        if isinstance(embedding, BitEmbedding):
            return cls(sizes, tuple(2**bits for own in embedding.bits for bits in _groups_of_bits(own)))
        if isinstance(embedding, ScalarEmbedding):
            groups = map(_groups_of_values, embedding.values_per_channel)
            return cls(sizes, tuple(chain.from_iterable(groups)))
        return cls(sizes, sizes)

    def split(self, ids: Tensor) -> Tensor:
        """Return the levels (..., L) of ids (..., Q)."""
        levels = []
        for number, group in enumerate(self._groups):
            rest = ids[..., number]
            for size in group[:-1]:
                levels.append(rest % size)
                rest = rest // size
            levels.append(rest)
        return torch.stack(levels, dim=-1)

    def join(self, levels: Tensor) -> Tensor:
        """Return the ids (..., Q) of levels (..., L)."""
        ids, rest = [], list(levels.unbind(-1))
        for group in self._groups:
            own, rest = rest[: len(group)], rest[len(group) :]
            joined = own[-1]
            for size, level in zip(group[-2::-1], own[-2::-1], strict=True):
                joined = joined * size + level
            ids.append(joined)
        return torch.stack(ids, dim=-1)

    @cached_property
    def _groups(self) -> list[list[int]]:
        """Sizes of the levels of each id."""
        groups, rest = [], list(self.sizes)
        for size in self.codebook_sizes:
            taken = 1
            while taken < len(rest) and math.prod(rest[:taken]) < size:
                taken += 1
            groups.append(rest[:taken])
            rest = rest[taken:]
        return [*groups, *([rest] if rest else [])]


def _groups_of_bits(bits: int) -> list[int]:
    """Return the number of bits of each group of an id."""
    if bits <= _WHOLE:
        return [bits]
    return [bits % _GROUP or _GROUP, *[_GROUP] * ((bits - 1) // _GROUP)]


def _groups_of_values(counts: tuple[int, ...]) -> list[int]:
    """Return the size of each group of channels with these numbers of values, the least significant channel first.

    A group takes channels as long as it has at most 2^14 values; a channel of more is a group of its own.
    """
    groups = [counts[0]]
    for count in counts[1:]:
        if groups[-1] * count <= 2**_WHOLE:
            groups[-1] *= count
        else:
            groups.append(count)
    return groups
