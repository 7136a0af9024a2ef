"""The initial values of a projector: fitted to the embedded patches of the teacher, by least squares.

A transformer that starts with the weights of a vision tower expects the tower's embedded patches. A projector with
random values gives it something else, mostly much smaller, and then the transformer has to learn to see anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import Tensor, nn

from toklip_core.model import SemanticEncoder

#: Share of the mean variance of a hidden unit that is added to the variance of each, so that the solution is unique.
_RIDGE = 1e-3


@torch.no_grad()
def fit_projector(
    encoder: SemanticEncoder, codes: Callable[[], Iterable[Tensor]], patches: Iterable[Tensor]
) -> float:
    """Fit an encoder's projector to the embedded patches of a tower; return the share of their variance it explains.

    The first layer is scaled so that its inputs have zero mean and unit spread. The last one is the ridge regression of
    the patches on the hidden units. The memory that this takes does not grow with the number of batches.

    Args:
        encoder: encoder whose projector has random values.
        codes: function that returns the batches of codes (B, h, w, C) of pictures; it is called twice.
        patches: batches of embedded patches (B, N, D) of the same pictures, N = h w; they are read once.

    >>> from toklip_core.model import EncoderConfig, TrunkConfig
    >>> trunk = TrunkConfig(width=32, depth=1, heads=2)
    >>> encoder = SemanticEncoder(EncoderConfig(codebook_dim=4, grid=(4, 4), trunk=trunk))
    >>> codes = torch.randn(50, 4, 4, 4)
    >>> fit_projector(encoder, lambda: codes.split(10), (codes.flatten(1, 2) @ torch.randn(4, 32)).split(10)) > 0.9
    True
    """
    first, activation, last = cast(tuple[nn.Linear, nn.GELU, nn.Linear], tuple(encoder.projector))

    def read() -> Iterable[Tensor]:
        return (encoder.projector_inputs(batch.flatten(1, 2)).flatten(0, 1).float() for batch in codes())

    mean, products, rows = _moments(read())
    spread = (products.diagonal().clamp(min=0) / (rows - 1)).sqrt()
    # The spread of a channel that never varies is rounding, which must not be blown up.
    first.weight.div_(spread.clamp(min=1e-5 * float(spread.max())))
    first.bias.sub_(first.weight @ mean.to(first.weight))
    pairs = zip(read(), patches, strict=True)
    both = (torch.cat([activation(first(x)), wanted.flatten(0, 1).float()], dim=1) for x, wanted in pairs)
    mean, products, _ = _moments(both)
    hidden = last.in_features
    squares, cross = products[:hidden, :hidden], products[:hidden, hidden:]
    ridge = torch.eye(hidden).to(squares) * _RIDGE * squares.diagonal().mean()
    weight = torch.linalg.solve(squares + ridge, cross).T
    last.weight.copy_(weight)
    last.bias.copy_(mean[hidden:] - weight @ mean[:hidden])
    explained = 2 * (weight.T * cross).sum() - (weight @ squares * weight).sum()
    return float(explained / products[hidden:, hidden:].trace())


def _moments(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor, int]:
    """Return the mean (D,) and the centred products (D, D) of the rows of batches (n, D), and the number of rows.

    Both are float64. The products are summed around the mean of the first batch, which keeps float32 exact enough.
    """
    shift = total = products = torch.zeros(())
    rows = 0
    for batch in batches:
        if not rows:
            shift = batch.mean(0)
        shifted = batch - shift
        total = total + shifted.sum(0).double()
        products = products + (shifted.T @ shifted).double()
        rows += len(batch)
    return shift + total / rows, products - torch.outer(total, total) / rows, rows
