"""How much of a codebook is in use."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class CodebookUse(NamedTuple):
    """Figures that say how many codes are in use, and how evenly; scalars, float64."""

    #: Share of the codebook that occurs, in [0, 1].
    used: Tensor
    #: exp(entropy) of the ids, in [1, K]: the number of codes that, used evenly, would be as diverse.
    perplexity: Tensor


def codebook_use(counts: Tensor) -> CodebookUse:
    """Return the use of a codebook from the occurrences (K,), int64, of its ids.

    >>> use = codebook_use(torch.tensor([0, 5, 5, 0]))
    >>> use.used.item(), round(use.perplexity.item(), 6)
    (0.5, 2.0)
    """
    shares = counts.double() / counts.sum().clamp_min(1)
    entropy = -torch.special.xlogy(shares, shares).sum()
    return CodebookUse((counts > 0).double().mean(), entropy.exp())
