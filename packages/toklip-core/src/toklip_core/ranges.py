"""Ranges of numbers that people give: how tokens and ids are drawn, seeds, counts."""

from __future__ import annotations

from collections.abc import Iterable

#: Seeds go from 0 to this one: what fits into 64 bits, signed or not.
LARGEST_SEED = 2**63 - 1
#: Counts, such as of pictures at a time, go up to this one: what fits into 32 bits.
LARGEST_COUNT = 2**31 - 1
#: Sides of pictures and patches in pixels, and of grids of ids.
LARGEST_SIDE = 2**14
#: Widths, heads and lengths in the config of a model: products of a few of them still fit into 64 bits.
LARGEST_WIDTH = 2**20
#: Layers or blocks in the config of a model.
MOST_LAYERS = 2**12
#: Hidden width over width in the config of a model.
LARGEST_RATIO = 2**10
#: Processes that read or prepare pictures are at most so many: each takes memory, and a moment to start.
MOST_WORKERS = 256
#: Width times height of a picture above which it is not read, unless a caller says otherwise: 67 million. Reading one
#: takes 7 to 19 bytes a pixel, by its format: 16 processes at once survive on a machine of 32 GB.
MAX_PIXELS = 2**26
#: What that limit may be raised to.
LARGEST_MAX_PIXELS = 2**34
#: Temperatures and guidance scales go up to this one: times a logit it is a float32 still.
LARGEST_SCALE = 1e30
#: A lower temperature takes the likeliest: logits that differ by 1e-3 differ in probability by exp(1000), and a logit
#: divided by much less is no float32 any more.
LEAST_TEMPERATURE = 1e-6


def refuse_drawing(
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    most: float = LARGEST_COUNT,
    seeds: Iterable[int] = (),
) -> None:
    """Refuse what tokens or ids cannot be drawn by.

    Args:
        temperature: 0 takes the likeliest; so does one below ``LEAST_TEMPERATURE``.
        top_p: draw among the likeliest of this probability together; 1 is all.
        top_k: draw among so many of the likeliest; 0 is all.
        most: what ``top_k`` may be: the number of ids, where it is known.
        seeds: of what is drawn.

    Raises:
        ValueError: a value is out of its range, or no number.
    """
    for seed in seeds:
        refuse_outside("seed", seed, 0 <= seed <= LARGEST_SEED, f"0 to {LARGEST_SEED}")
    likeliest = f"0 (the likeliest id) or more, up to {LARGEST_SCALE:g}"
    refuse_outside("temperature", temperature, 0 <= temperature <= LARGEST_SCALE, likeliest)
    refuse_outside("top_k", top_k, 0 <= top_k <= most, f"0 (all) to {most}")
    refuse_outside("top_p", top_p, 0 < top_p <= 1, "more than 0, up to 1 (all)")


def refuse_counts(**counts: int) -> None:
    """Refuse what is no count from 1 on, by name.

    Raises:
        ValueError: it is less than 1, or more than ``LARGEST_COUNT``.

    >>> refuse_counts(batch_size=0)
    Traceback (most recent call last):
    ValueError: got batch_size = 0; wanted 1 to 2147483647
    """
    for name, count in counts.items():
        refuse_outside(name, count, 1 <= count <= LARGEST_COUNT, f"1 to {LARGEST_COUNT}")


def refuse_outside(name: str, value: object, fits: bool, wanted: str) -> None:
    """ValueError that says what was got and wanted, unless it fits."""
    if not fits:
        raise ValueError(f"got {name} = {value}; wanted {wanted}")
