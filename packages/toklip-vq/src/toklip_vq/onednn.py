"""Linear layers by oneDNN, for frozen transformers on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self, TypeVar

import torch
from torch import Tensor, nn


class OneDNNLinear(nn.Linear):
    """A linear layer whose products in float32 on a CPU are oneDNN's, where torch has them.

    PyTorch multiplies with MKL, which on processors of AMD does not use all of their vector units: on Zen 4, 256 rows
    take 0.87 of its time. The results differ in the last bits.
    """

    @classmethod
    def of(cls, linear: nn.Linear) -> Self:
        """Return a layer with the tensors of a plain one."""
        with torch.device("meta"):
            layer = cls(linear.in_features, linear.out_features, bias=linear.bias is not None)
        layer.weight, layer.bias = linear.weight, linear.bias
        return layer.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., out) of (..., in)."""
        learns = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        if learns or x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        if not torch._C._has_mkldnn or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            return super().forward(x)
        # What torch.compile makes of a linear layer. Tensor.to_mkldnn, the public way, copies inputs and results.
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return y


_Module = TypeVar("_Module", bound=nn.Module)


def replace_modules(network: nn.Module, kind: type[_Module], replacement: Callable[[_Module], nn.Module]) -> None:
    """Replace each module of a kind, not of its subclasses, inside a network.

    >>> network = nn.Sequential(nn.Linear(3, 2), nn.GELU())
    >>> replace_modules(network, nn.Linear, OneDNNLinear.of)
    >>> network[0]
    OneDNNLinear(in_features=3, out_features=2, bias=True)
    """
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is kind:
                setattr(parent, name, replacement(child))
