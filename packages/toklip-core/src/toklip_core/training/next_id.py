"""Losses of models that predict the ids of pictures, level by level.

Shape letters: L levels of a position, K_q size of level q.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class NextIdLoss(NamedTuple):
    """Loss of predicted ids, and the share of them that is predicted correctly: means over positions and levels."""

    loss: Tensor
    accuracy: Tensor


def next_id_loss(logits: Sequence[Tensor], levels: Tensor) -> NextIdLoss:
    """Return the cross entropy and the accuracy, scalars, of the logits (..., K_q) of each of the levels (..., L).

    >>> loss, accuracy = next_id_loss([torch.zeros(3, 8), torch.eye(3, 4) * 99], torch.tensor([[1, 0], [0, 1], [0, 2]]))
    >>> round(float(loss), 3), round(float(accuracy), 3)
    (1.04, 0.833)
    """
    pairs = list(zip(logits, levels.unbind(-1), strict=True))
    losses = [F.cross_entropy(of_level.flatten(0, -2), wanted.flatten()) for of_level, wanted in pairs]
    hits = [(of_level.detach().argmax(-1) == wanted).float().mean() for of_level, wanted in pairs]
    return NextIdLoss(torch.stack(losses).mean(), torch.stack(hits).mean())


def z_loss(logits: Sequence[Tensor]) -> Tensor:
    """Return the mean square, a scalar, of log Z of the logits (..., K_q) of each level, which keeps them from growing.

    Source: PaLM, https://arxiv.org/abs/2204.02311, section 5; UniTok weights it by 5e-5.

    >>> round(float(z_loss([torch.zeros(2, 8)])), 3)
    4.324
    """
    return torch.stack([of_level.logsumexp(-1).square().mean() for of_level in logits]).mean()


def with_sampled_levels(levels: Tensor, sampled: Tensor, *, largest_share: float) -> Tensor:
    """Return the levels (B, N, L) of pictures in which, at random positions, stand those that the model sampled there.

    Each picture has its own share of such positions, uniform in [0, ``largest_share``]. A model that reads these and
    predicts ``levels`` learns to go on after an error of its own.

    Sample in a pass without gradient, and call ``torch.clear_autocast_cache()`` after it. Before torch 2.10 autocast
    used the weights that it had cast there again in the next pass, where they then got no gradient
    (https://github.com/pytorch/pytorch/issues/65766).

    Source: Bengio et al., Scheduled Sampling, https://arxiv.org/abs/1506.03099. All positions are sampled in one pass,
    as Mihaylova and Martins do for transformers, https://arxiv.org/abs/1906.07651.

    Args:
        levels: (B, N, L), int64, of the pictures.
        sampled: (B, N, L), int64, each position after the picture's own positions before it.
        largest_share: largest share of positions of a picture that are sampled, in [0, 1].

    >>> levels = torch.zeros(2, 9, 4, dtype=torch.int64)
    >>> torch.equal(with_sampled_levels(levels, levels + 1, largest_share=0.0), levels)
    True
    """
    share = largest_share * torch.rand(len(levels), 1, 1, device=levels.device)
    chosen = torch.rand(*levels.shape[:2], 1, device=levels.device) < share
    return torch.where(chosen, sampled, levels)
