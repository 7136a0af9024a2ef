"""Linear layers for drawing on a processor: weights in the order in which oneDNN reads them.

A step multiplies all weights with the rows of one position. For two rows in float32 torch's own product takes five
times as long as reading the weights does, and for sixteen in bfloat16 twice; packed weights are read once, at the speed
of memory. Packing takes as long as two or three steps, and the memory of the weights once more.

Source: the operators are those that torch.compile uses when it freezes weights.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor, nn

_Module = TypeVar("_Module", bound=nn.Module)


class PackedLinear(nn.Module):
    """A linear layer whose weight is packed, for inputs of few rows; it has no parameters."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._bias = linear.bias
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Return what the linear layer does."""
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")  # type: ignore[no-any-return]


def packed(module: _Module) -> _Module:
    """Return a module that does the same, with weights of its linear layers packed where that is quicker, else itself.

    It shares all that is not packed, and does not follow what becomes of the weights. No gradient flows through it.
    """
    weight = next(module.parameters())
    if weight.device.type != "cpu" or weight.dtype not in _dtypes():
        return module
    # Memoised, parameters and buffers are taken for copied.
    shared = {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]}
    twin = copy.deepcopy(module, shared)
    for name, child in list(twin.named_modules()):
        if type(child) is nn.Linear and not name.startswith("attn_pool."):  # pooling is no part of a step
            twin.set_submodule(name, PackedLinear(child))
    return twin


@cache
def _dtypes() -> frozenset[torch.dtype]:
    """Return the dtypes that this processor and torch can compute packed linear layers in."""
    if not torch._C._has_mkldnn or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return frozenset()
    half = [torch.bfloat16] if torch.ops.mkldnn._is_mkldnn_bf16_supported() else []
    return frozenset([torch.float32, *half])
