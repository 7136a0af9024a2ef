"""The initial values of a projector: fitted to the embedded patches of the teacher, by least squares.

A transformer that starts with the weights of a vision tower expects the tower's embedded patches. A projector with
random values gives it something else, mostly much smaller, and then the transformer has to learn to see anew.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from toklip_core.model import SemanticEncoder

#: Share of the mean variance of a hidden unit that is added to the variance of each, so that the solution is unique.
_RIDGE = 1e-3


@torch.no_grad()
def fit_projector(encoder: SemanticEncoder, codes: Tensor, patches: Tensor) -> float:
    """Fit an encoder's projector to the embedded patches of a tower; return the share of their variance it explains.

    The first layer is scaled so that its inputs have zero mean and unit spread. The last one is the ridge regression of
    the patches on the hidden units.

    Args:
        encoder: encoder whose projector has random values.
        codes: codes (B, h, w, C) of pictures.
        patches: embedded patches (B, N, D) of the same pictures, N = h w.

    >>> from toklip_core.model import EncoderConfig, TrunkConfig
    >>> trunk = TrunkConfig(width=32, depth=1, heads=2)
    >>> encoder = SemanticEncoder(EncoderConfig(codebook_dim=4, grid=(4, 4), trunk=trunk))
    >>> codes = torch.randn(50, 4, 4, 4)
    >>> fit_projector(encoder, codes, codes.flatten(1, 2) @ torch.randn(4, 32)) > 0.9
    True
    """
    first, activation, last = cast(tuple[nn.Linear, nn.GELU, nn.Linear], tuple(encoder.projector))
    read = encoder.projector_inputs(codes.flatten(1, 2)).flatten(0, 1).float()
    wanted = patches.flatten(0, 1).float()
    spread = read.std(0)
    # The spread of a channel that never varies is rounding, which must not be blown up.
    first.weight.div_(spread.clamp(min=1e-5 * float(spread.max())))
    first.bias.sub_(first.weight @ read.mean(0))
    hidden = activation(first(read))
    centred, offset = hidden - hidden.mean(0), wanted.mean(0)
    squares = centred.T @ centred
    squares.diagonal().add_(_RIDGE * squares.diagonal().mean())
    last.weight.copy_(torch.linalg.solve(squares, centred.T @ (wanted - offset)).T)
    last.bias.copy_(offset - last.weight @ hidden.mean(0))
    residual = (last(hidden) - wanted).square().sum()
    return float(1 - residual / (wanted - offset).square().sum())
