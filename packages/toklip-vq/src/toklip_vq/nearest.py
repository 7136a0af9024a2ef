"""The search for the nearest code: exact, in float32, with little memory."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Metric = Literal["cosine", "dot", "euclidean"]

#: Number of codes that are scored at a time; it limits the memory of a search to latents x chunk scores.
_CHUNK = 4096


@torch.no_grad()
def nearest_rows(latents: Tensor, rows: Tensor, metric: Metric, chunk: int = _CHUNK) -> tuple[Tensor, Tensor]:
    """Return the ids (...), int64, of the rows (K, C) nearest to latents (..., C), and their scores (...), float32.

    The search runs in float32, also under autocast. Of equally near rows the first wins. No gradient. Scores are
    higher for nearer rows; a latent or row that is not finite gives a score of NaN or infinity, which the ids do not
    show.

    Args:
        latents: what to search for.
        rows: the codebook, float32; its rows have unit norm if the metric is cosine.
        metric: cosine (the latents are normalised), dot (the largest inner product) or euclidean.
        chunk: number of rows that are scored at a time.

    >>> nearest_rows(torch.tensor([[0.2, 0.1], [0.9, 0.8]]), torch.tensor([[0.0, 0.0], [1.0, 1.0]]), "euclidean")[0]
    tensor([0, 1])
    """
    with torch.autocast(latents.device.type, enabled=False):
        queries_NC = latents.detach().reshape(-1, latents.shape[-1]).float()
        if metric == "cosine":
            queries_NC = F.normalize(queries_NC, dim=-1)
        # |q - e|^2 = |q|^2 - 2 (q.e - |e|^2 / 2): the nearest row has the largest bracket.
        half_squares_K = rows.square().sum(-1) / 2 if metric == "euclidean" else None
        best_N = queries_NC.new_full((len(queries_NC),), -torch.inf)
        ids_N = torch.zeros_like(best_N, dtype=torch.int64)
        for start in range(0, len(rows), chunk):
            scores_NK = queries_NC @ rows[start : start + chunk].T
            if half_squares_K is not None:
                scores_NK -= half_squares_K[start : start + chunk]
            score_N, id_N = scores_NK.max(dim=-1)
            better_N = score_N > best_N
            best_N = torch.maximum(best_N, score_N)  # maximum keeps NaN, a comparison does not
            ids_N = torch.where(better_N, id_N + start, ids_N)
        return ids_N.reshape(latents.shape[:-1]), best_N.reshape(latents.shape[:-1])


def unit_rows(rows: Tensor) -> Tensor:
    """Return rows (K, C) divided by their lengths; a row of zeros stays.

    Squares are added in a fixed order, so that every processor gives the same bits, and with them the same checksum.

    >>> unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    squares = torch.zeros_like(rows[:, 0])
    for channel in rows.unbind(1):
        squares = squares + channel * channel
    return rows / squares.sqrt().clamp(min=1e-12)[:, None]
