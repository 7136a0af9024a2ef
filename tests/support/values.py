"""A guard on modules that are built without values: they compute none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import BuiltinFunctionType, MethodDescriptorType
from typing import Any
from unittest.mock import patch

from toklip_core.weights import shapes
from torch import Tensor

#: In-place methods that change no value.
_NO_VALUES = {"requires_grad_", "detach_"}


@contextmanager
def refusing_values() -> Iterator[list[str]]:
    """Inside, an in-place method that computes a value of a module built without values is an AssertionError.

    torch would compute it by a function in Python that imports its compiler, which takes a second. Python functions,
    such as those of torch.nn.init, are made of such methods. The list grows by the names of the methods that were left
    out.
    """
    left_out: list[str] = []
    leave_out = shapes._NoInitialValues.__torch_function__

    def refuse(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        is_method = isinstance(func, BuiltinFunctionType | MethodDescriptorType)
        if is_method and name.endswith("_") and not name.endswith("__") and name not in _NO_VALUES:
            if args and isinstance(args[0], Tensor) and args[0].is_meta:
                assert name in shapes._INITIAL_VALUES, f"{name} computes a value; let without_values leave it out"
                left_out.append(name)
        return leave_out(self, func, types, args, kwargs)

    with patch.object(shapes._NoInitialValues, "__torch_function__", refuse):
        yield left_out
