"""NaN and infinity are refused where numbers come in or go out, in one line: silently they become id 0 everywhere.

Under ``torch.compile``, and while a CUDA graph is recorded, nothing is checked: to look at a number would break the
graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

#: What to do about it, where weights or dtype are what can be wrong.
_DAMAGED = "the weights are damaged, or numbers too large for the dtype; load other weights, or compute in float32"


class NotFiniteError(ValueError):
    """A number of a picture, a text or another row of a batch is NaN or infinite.

    Args:
        what: what is not finite of the row.
        name: of the row.
        row: its place in the batch, counted from 0.
        advice: why that may be, and what to do.
    """

    def __init__(self, what: str, name: str, row: int, advice: str) -> None:
        super().__init__(f"{what} of {name} is not finite (NaN or infinity): {advice}")
        self.what, self.row, self.advice = what, row, advice


def is_finite(tensor: Tensor) -> bool:
    """Return whether all numbers of a tensor are finite, in one pass and without a copy; integers always are."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    tensor = tensor.detach()
    # Least and greatest number are NaN if any number is. isfinite().all() takes fifty times as long, and four copies.
    ends = torch.stack(torch.aminmax(tensor if tensor.itemsize > 1 else tensor.float()))
    return bool(ends.isfinite().all())


def refuse_not_finite(rows: Tensor, what: str, kind: str = "picture", *, advice: str = _DAMAGED) -> None:
    """Raise NotFiniteError, naming the first row that is to blame, unless all of ``rows`` (B, ...) is finite.

    Args:
        rows: one for each picture or text.
        what: what is looked at, such as "the model's feature".
        kind: what a row is of.
        advice: why a number may be none, and what to do.
    """
    if not _can_look(rows) or is_finite(rows):
        return
    row = next(place for place in range(len(rows)) if not is_finite(rows[place]))
    raise NotFiniteError(what, f"{kind} {row + 1} of {len(rows)}", row, advice)


def refuse_pixels(pixels: Tensor) -> None:
    """Raise ValueError unless pixels (B, ...) are floating point and finite: 8-bit levels are no pixels in [-1, 1].

    >>> refuse_pixels(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    Traceback (most recent call last):
    ValueError: got pixels of torch.uint8; wanted floating point in [-1, 1], which ...
    """
    if not pixels.is_floating_point():
        raise ValueError(
            f"got pixels of {pixels.dtype}; wanted floating point in [-1, 1], "
            "which toklip_core.pictures.normalized makes of 8-bit levels"
        )
    refuse_not_finite(pixels, "a pixel", advice="wanted numbers in [-1, 1]")


@contextmanager
def rows_named(names: Sequence[str]) -> Iterator[None]:
    """Call a row that is not finite by its name, where the names of a batch's rows are known."""
    try:
        yield
    except NotFiniteError as error:
        if error.row >= len(names):
            raise
        raise NotFiniteError(error.what, repr(names[error.row]), error.row, error.advice) from error


def refuse_damaged(module: nn.Module, source: object) -> None:
    """Raise ValueError with the name of the first weight of a module that has NaN or infinity in it.

    -inf in a buffer is no damage: masks are made of it.

    Args:
        module: its parameters and buffers are looked at, but for those of the meta device.
        source: the file or name that it is from, for the message.
    """
    for name, weight in module.named_parameters():
        if not weight.is_meta and not is_finite(weight):
            raise ValueError(damaged(source, name))
    for name, buffer in module.named_buffers():
        if not buffer.is_meta and not is_finite(buffer.masked_fill(buffer == -torch.inf, 0)):
            raise ValueError(damaged(source, name))


def damaged(source: object, name: str) -> str:
    """Return the message that a tensor of a file is not finite."""
    return f"the tensor {name!r} of {str(source)!r} has NaN or infinity in it: it is damaged; fetch or train it again"


def _can_look(tensor: Tensor) -> bool:
    if torch.compiler.is_compiling() or tensor.is_meta:
        return False
    return not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())
