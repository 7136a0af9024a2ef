"""From latents to ids: the nearest rows of tables, the signs of bits, the nearest values of scalars. Nothing trains.

Each quantizer contains the :mod:`embedding <toklip_core.embeddings>` that turns its ids back into codes.

Shape letters: N positions, Q levels (ids per position), K codebook size, C codebook dim.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from toklip_core.embeddings import BitEmbedding, CodeEmbedding, ScalarEmbedding, TableEmbedding
from torch import Tensor, nn

from toklip_vq.nearest import Metric, nearest_rows


class Quantizer(Protocol):
    """From latents to ids, in float32 whatever their dtype is, also under autocast."""

    @property
    def embedding(self) -> CodeEmbedding:
        """From ids to codes."""

    def search(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ids (..., Q), int64, of latents (..., C), and numbers (...) that are not finite if those are not.

        No gradient.
        """


class TableQuantizer(nn.Module):
    """The nearest row of a table: of each table for its own channels, or table after table for what is left.

    Args:
        embedding: tables, concatenated or summed; those for the cosine metric have rows of unit norm.
        metric: what "near" means; for summed tables that is ``euclidean``.

    Raises:
        ValueError: the tables are summed, and the metric is another.

    >>> quantizer = TableQuantizer(TableEmbedding([torch.tensor([[0.0, 0.0], [1.0, 1.0]])]), "euclidean")
    >>> quantizer.search(torch.tensor([[0.2, 0.1], [0.9, 0.8]]))[0]
    tensor([[0],
            [1]])
    """

    def __init__(self, embedding: TableEmbedding, metric: Metric) -> None:
        super().__init__()
        if embedding.levels_are_residual and metric != "euclidean":
            raise ValueError(f"got the metric {metric!r} for tables that are summed; take 'euclidean'")
        self.embedding, self.metric = embedding, metric

    @torch.no_grad()
    def search(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ids (..., Q) of the nearest codes, and sums (...) of their scores over the levels; no gradient.

        A sum is not finite if the latent is not.
        """
        levels = range(len(self.embedding.codebook_sizes))
        tables = [self.embedding.rows(level) for level in levels]
        found: list[tuple[Tensor, Tensor]] = []
        if self.embedding.levels_are_residual:
            rest = latents.float()
            for table in tables:
                found.append(nearest_rows(rest, table, self.metric))
                rest = rest - F.embedding(found[-1][0], table)
        else:
            split = torch.split(latents, [table.shape[1] for table in tables], dim=-1)
            found = [nearest_rows(part, table, self.metric) for part, table in zip(split, tables, strict=True)]
        ids, scores = zip(*found, strict=True)
        return torch.stack(ids, dim=-1), sum(scores[1:], scores[0])


class BitQuantizer(nn.Module):
    """The signs of latents as the bits of ids (LFQ, BSQ): positive is 1, zero and negative 0.

    >>> BitQuantizer(BitEmbedding(3)).search(torch.tensor([0.5, -2.0, 0.1]))[0]
    tensor([5])
    """

    def __init__(self, embedding: BitEmbedding) -> None:
        super().__init__()
        self.embedding = embedding

    @torch.no_grad()
    def search(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ids (..., Q) of latents (..., C), and their sums (...); no gradient."""
        return self.embedding.ids_of(latents > 0), latents.float().sum(-1)


class ScalarQuantizer(nn.Module):
    """The nearest of the values of each channel, after a tanh that bounds it (FSQ).

    Source: Mentzer et al., https://arxiv.org/abs/2309.15505; with values evenly spaced in [-1, 1], the ends included.

    >>> ScalarQuantizer(ScalarEmbedding((3, 5))).search(torch.tensor([0.0, 9.0]))[0]
    tensor([13])
    """

    def __init__(self, embedding: ScalarEmbedding) -> None:
        super().__init__()
        self.embedding = embedding

    def bounded(self, latents: Tensor) -> Tensor:
        """Return latents (..., C) in [-1, 1], float32, before they are rounded to values; differentiable."""
        return latents.float().tanh()

    @torch.no_grad()
    def search(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ids (..., Q) of latents (..., C), and their sums (...); no gradient."""
        counts = [count for level in self.embedding.values_per_channel for count in level]
        steps = torch.tensor(counts, device=latents.device) - 1
        digits = ((self.bounded(latents) + 1) / 2 * steps).round()
        return self.embedding.ids_of(digits), latents.float().sum(-1)
