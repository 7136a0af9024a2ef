"""How much a forward pass keeps for the backward pass, which gradient checkpointing is there to lower."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


def kept_by(forward: Callable[..., Result], *arguments: object) -> tuple[Result, int]:
    """Return the result of a forward pass, and how many numbers it keeps for the backward pass.

    What a checkpoint computes anew is not counted, because the checkpoint's own hooks see it first.
    """
    numbers = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal numbers
        numbers += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward(*arguments)
    return result, numbers
