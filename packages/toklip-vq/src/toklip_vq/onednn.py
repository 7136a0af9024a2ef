"""Linear layers by oneDNN, for frozen transformers on a CPU."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Self, TypeVar

import torch
from toklip_core.weights import without_values
from torch import Tensor, nn

#: Held while a weight changes its order or is asked for, so that no thread meets a layer without one.
_reordering = threading.RLock()


class OneDNNLinear(nn.Linear):
    """A linear layer whose products in float32 on a CPU are oneDNN's, where torch has them.

    PyTorch multiplies with MKL, which on processors of AMD does not use all of their vector units: on Zen 4, 256 rows
    take 0.87 of its time. The results differ in the last bits.

    From the first such product on, a frozen weight is kept in oneDNN's own order instead of the plain one, which saves
    another 6 %. Whatever asks for the plain weight gets it back, equal to the bit, in a new tensor.
    """

    _packs = True
    _packed: Tensor | None = None

    @classmethod
    def of(cls, linear: nn.Linear, *, packs: bool = True) -> Self:
        """Return a layer with the tensors of a plain one.

        Args:
            linear: the plain layer.
            packs: whether a frozen weight may be kept in oneDNN's order: not if it is mapped from a file, which would
                stay in memory beside it.
        """
        with without_values():
            layer = cls(linear.in_features, linear.out_features, bias=linear.bias is not None)
        layer.weight, layer.bias, layer._packs = linear.weight, linear.bias, packs
        return layer.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., out) of (..., in)."""
        packed = self._packed
        weight = self.weight if packed is None else packed
        learns = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
        if learns or x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        if not torch._C._has_mkldnn or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            return super().forward(x)
        # What torch.compile makes of a linear layer. Tensor.to_mkldnn, the public way, copies inputs and results.
        if self._packs and packed is None and not weight.requires_grad:
            with _reordering:
                self._packed = weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
                self.__dict__["_parameters"]["weight"] = None
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, self.bias, "none", [], "")
        return y

    # A packed tensor can be neither copied nor saved. Every way to a parameter leads through the next property, except
    # that nn.Module's __getattr__ reads the dictionary itself.
    @property
    def _parameters(self) -> dict[str, nn.Parameter | None]:
        parameters: dict[str, nn.Parameter | None] = self.__dict__["_parameters"]
        if self._packed is not None:
            with _reordering, torch.inference_mode(False):  # a tensor of inference mode could never learn again
                if self._packed is not None:
                    parameters["weight"] = nn.Parameter(self._packed.to_dense(), requires_grad=False)
                    self._packed = None
        return parameters

    @_parameters.setter
    def _parameters(self, parameters: dict[str, nn.Parameter | None]) -> None:
        self.__dict__["_parameters"] = parameters

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        if name != "weight":
            return super().__getattr__(name)
        with _reordering:
            _ = self._parameters
            return super().__getattr__(name)

    def __getstate__(self) -> dict[str, Any]:
        plain = {"_parameters": dict(self._parameters)}
        return self.__dict__ | plain


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
