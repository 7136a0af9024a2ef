"""NaN and infinity are refused where numbers come in or go out, in one line: silently they become id 0 everywhere.

Under ``torch.compile``, and while a CUDA graph is recorded, nothing is checked: to look at a number would break the
graph.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: What to do about it, where weights and pixels are what can be wrong.
DAMAGED = "its weights are damaged, or its numbers too large for the dtype; load other weights, or compute in float32"


class NotFiniteError(ValueError):
    """Numbers of a picture, a text or another row are NaN or infinite.

    Attributes:
        row: the first such row of the batch, counted from 0.
    """

    def __init__(self, message: str, row: int) -> None:
        super().__init__(message)
        self.row = row


def is_finite(tensor: Tensor) -> bool:
    """Return whether all numbers of a tensor are finite, in one pass and without a copy; integers always are."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    tensor = tensor.detach()
    # Least and greatest number are NaN if any number is. isfinite().all() takes fifty times as long, and four copies.
    ends = torch.stack(torch.aminmax(tensor if tensor.itemsize > 1 else tensor.float()))
    return bool(ends.isfinite().all())


def refuse_not_finite(rows: Tensor, what: str, *, advice: str = DAMAGED) -> None:
    """Raise NotFiniteError, naming the first row, unless all of ``rows`` (B, ...) is finite.

    Args:
        rows: a row for each picture or text.
        what: what one row is of it, such as "the tokenizer's pixels of picture".
        advice: why that may be, and what to do.
    """
    if not _can_look(rows) or is_finite(rows):
        return
    row = next(place for place in range(len(rows)) if not is_finite(rows[place]))
    raise NotFiniteError(f"{what} {row + 1} of {len(rows)} are not finite (NaN or infinity): {advice}", row)


def refuse_pixels(pixels: Tensor) -> None:
    """Raise ValueError unless pixels (B, ...) are floating point and finite: 8-bit levels are no pixels in [-1, 1]."""
    if not pixels.is_floating_point():
        raise ValueError(
            f"got pixels of {pixels.dtype}; wanted floating point in [-1, 1], which toklip_core.data.normalized makes "
            "of 8-bit levels"
        )
    refuse_not_finite(pixels, "the pixels of picture", advice="wanted numbers in [-1, 1]")


def refuse_damaged(module: nn.Module, source: object) -> None:
    """Raise ValueError with the name of the first weight of a module that has NaN or infinity, and where it is from.

    -inf in a buffer is no damage: masks are made of it.
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
