"""From the size of a picture to the grid of its ids, for tokenizers: any multiple of a factor, or one fixed size."""

from __future__ import annotations

from collections.abc import Sequence


def grid_by_factor(height: int, width: int, factor: int) -> tuple[int, int]:
    """Return the grid (h, w) of a tokenizer of which one position covers ``factor`` x ``factor`` pixels.

    Raises:
        ValueError: a side is not a positive multiple of the factor.

    >>> grid_by_factor(256, 384, 16)
    (16, 24)
    >>> grid_by_factor(100, 256, 16)
    Traceback (most recent call last):
    ValueError: got a picture of 100 x 256; its sides must be multiples of 16: crop or resize it
    """
    if height <= 0 or width <= 0 or height % factor or width % factor:
        raise ValueError(
            f"got a picture of {height} x {width}; its sides must be multiples of {factor}: crop or resize it"
        )
    return height // factor, width // factor


def grid_of_size(height: int, width: int, *, size: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
    """Return ``grid``, that of a tokenizer that takes pictures of one size (H, W) alone.

    Raises:
        ValueError: the picture has another size.

    >>> grid_of_size(256, 256, size=(256, 256), grid=(16, 16))
    (16, 16)
    >>> grid_of_size(512, 512, size=(256, 256), grid=(16, 16))
    Traceback (most recent call last):
    ValueError: got a picture of 512 x 512; this tokenizer takes 256 x 256 alone: crop or resize it
    """
    if (height, width) != size:
        raise ValueError(
            f"got a picture of {height} x {width}; this tokenizer takes {size[0]} x {size[1]} alone: crop or resize it"
        )
    return grid


def refuse_other_grid(got: Sequence[int], wanted: Sequence[int]) -> None:
    """Raise ValueError unless ids have the grid (h, w) of a tokenizer that takes pictures of one size alone.

    >>> refuse_other_grid((16, 17), (16, 16))
    Traceback (most recent call last):
    ValueError: got ids on a grid of 16 x 17; this tokenizer has 16 x 16
    """
    if tuple(got) != tuple(wanted):
        raise ValueError(f"got ids on a grid of {got[0]} x {got[1]}; this tokenizer has {wanted[0]} x {wanted[1]}")
