"""Random weights, none of which is zero or one, so that missing, misplaced or doubled tensors show."""

from typing import TypeVar

import torch
from torch import nn

_Module = TypeVar("_Module", bound=nn.Module)


@torch.no_grad()
def randomised(module: _Module, seed: int = 0) -> _Module:
    """Fill a module's parameters: matrices keep the size of what passes, scales are near 1, the rest is small."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim >= 2:
            parameter.copy_(noise / parameter.shape[-1] ** 0.5)
        else:
            parameter.copy_(0.1 * noise + (not name.endswith("bias")))
    return module
