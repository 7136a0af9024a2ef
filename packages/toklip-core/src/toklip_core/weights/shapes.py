"""Modules that have shapes and dtypes and no values yet, because a file has them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

#: Methods by which initial values are written in place. The tests name one that is missing (tests/support/values.py).
_INITIAL_VALUES = frozenset(
    f"{name}_" for name in ("add", "clamp", "copy", "div", "erfinv", "fill", "mul", "normal", "triu", "uniform", "zero")
)


@contextmanager
def without_values() -> Iterator[None]:
    """Build modules on the meta device: their tensors have shapes and dtypes, and no memory.

    Initial values are left out. On the meta device torch computes them by functions in Python that import its compiler,
    which takes a second.

    >>> with without_values():
    ...     layer = torch.nn.Linear(100_000, 100_000)
    >>> layer.weight.device
    device(type='meta')
    """
    with torch.device("meta"), _NoInitialValues():
        yield


class _NoInitialValues(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - the signature of torch
        named = kwargs or {}
        if getattr(func, "__name__", "") in _INITIAL_VALUES:
            tensor = args[0] if args else named["tensor"]  # the functions of torch.nn.init name it
            if tensor.is_meta:
                return tensor
        return func(*args, **named)
