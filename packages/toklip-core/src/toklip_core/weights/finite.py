"""Checks that refuse NaN and infinity in inputs and results; unchecked, they would silently become id 0.

Under ``torch.compile``, and while a CUDA graph is recorded, nothing is checked, because reading a number would break
the graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

#: Advice for results, where the weights or the dtype may be at fault.
_DAMAGED = "the weights are damaged, or numbers too large for the dtype; load other weights, or compute in float32"


class NotFiniteError(ValueError):
    """A number of a picture, a text or another row of a batch is NaN or infinite.

    Args:
        what: the quantity that is not finite.
        name: name of the row.
        row: place of the row in the batch, counted from 0.
        advice: possible cause, and what to do.
    """

    def __init__(self, what: str, name: str, row: int, advice: str) -> None:
        super().__init__(f"{what} of {name} is not finite (NaN or infinity): {advice}")
        self.what, self.row, self.advice = what, row, advice


def is_finite(tensor: Tensor) -> bool:
    """Return whether all numbers of a tensor are finite, in one pass and without a copy. Integers always are."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    tensor = tensor.detach()
    # Minimum and maximum are NaN if any number is. isfinite().all() takes fifty times as long, and four copies.
    ends = torch.aminmax(tensor if tensor.itemsize > 1 else tensor.float())
    return all(bool(end.isfinite()) for end in ends)  # not stacked, which autocast refuses for float16


def refuse_not_finite(rows: Tensor, what: str, kind: str = "picture", *, advice: str = _DAMAGED) -> None:
    """Raise NotFiniteError, which names the first row at fault, unless all numbers of ``rows`` (B, ...) are finite.

    Args:
        rows: tensor with one row for each picture or text.
        what: name of the quantity, such as "the model's feature".
        kind: "picture", "text" or another word for a row.
        advice: possible cause, and what to do.
    """
    if not _can_look(rows) or is_finite(rows):
        return
    row = next(place for place in range(len(rows)) if not is_finite(rows[place]))
    raise NotFiniteError(what, f"{kind} {row + 1} of {len(rows)}", row, advice)


@contextmanager
def rows_named(names: Sequence[str]) -> Iterator[None]:
    """Name the row of a NotFiniteError raised inside, for a caller that knows the names of a batch's rows."""
    try:
        yield
    except NotFiniteError as error:
        if error.row >= len(names):
            raise
        raise NotFiniteError(error.what, repr(names[error.row]), error.row, error.advice) from error


def refuse_damaged(module: nn.Module, source: object) -> None:
    """Raise ValueError if a weight of a module contains NaN or infinity; the message names the first one.

    -inf in a buffer is allowed, because masks contain it.

    Args:
        module: module whose parameters and buffers are checked, except those on the meta device.
        source: file or name that the module was loaded from, for the message.
    """
    for name, weight in module.named_parameters():
        if not weight.is_meta and not is_finite(weight):
            raise ValueError(damaged(source, name))
    for name, buffer in module.named_buffers():
        if buffer.is_meta or is_finite(buffer):
            continue
        if not is_finite(buffer.masked_fill(buffer == -torch.inf, 0)):
            raise ValueError(damaged(source, name))


def damaged(source: object, name: str) -> str:
    """Return the error message for a tensor of a file that is not finite."""
    return f"the tensor {name!r} of {str(source)!r} has NaN or infinity in it: it is damaged; fetch or train it again"


def _can_look(tensor: Tensor) -> bool:
    if torch.compiler.is_compiling() or tensor.is_meta:
        return False
    return not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())
