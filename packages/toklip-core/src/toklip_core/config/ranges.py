"""Ranges of numbers that users give: seeds, counts, sizes, and settings of sampling."""

from __future__ import annotations

from collections.abc import Iterable

#: Largest seed, the largest number that fits into 64 bits with and without a sign.
LARGEST_SEED = 2**63 - 1
#: Largest count, such as pictures per batch: it fits into 32 bits.
LARGEST_COUNT = 2**31 - 1
#: Largest side of pictures and patches in pixels, and of grids of ids.
LARGEST_SIDE = 2**14
#: Largest width, number of heads or length in the config of a model; products of a few of them fit into 64 bits.
LARGEST_WIDTH = 2**20
#: Largest number of layers or blocks in the config of a model.
MOST_LAYERS = 2**12
#: Largest ratio of hidden width to width in the config of a model.
LARGEST_RATIO = 2**10
#: Largest number of processes that read or prepare pictures; each takes memory, and a moment to start.
MOST_WORKERS = 256
#: Width times height above which a picture is not read by default: 67 million. Reading takes 7 to 19 bytes per pixel,
#: depending on the format, so 16 processes at once fit on a machine with 32 GB.
MAX_PIXELS = 2**26
#: Largest value that this limit may be set to.
LARGEST_MAX_PIXELS = 2**34
#: Largest temperature and guidance scale; its product with a logit still fits into float32.
LARGEST_SCALE = 1e30
#: Temperature below which the likeliest id is always taken: here a difference of 1e-3 between logits is a factor of
#: exp(1000) between probabilities, and much smaller temperatures overflow float32.
LEAST_TEMPERATURE = 1e-6


def refuse_drawing(
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    most: float = LARGEST_COUNT,
    seeds: Iterable[int] = (),
) -> None:
    """Refuse settings of sampling that are out of range.

    Args:
        temperature: divisor of the logits; 0, or less than ``LEAST_TEMPERATURE``, always takes the likeliest id.
        top_p: total probability of the likeliest ids to sample from; 1 means all.
        top_k: number of the likeliest ids to sample from; 0 means all.
        most: largest allowed ``top_k``, which is the number of ids if that is known.
        seeds: seeds of the samples.

    Raises:
        ValueError: a value is out of its range or NaN.
    """
    for seed in seeds:
        refuse_outside("seed", seed, 0 <= seed <= LARGEST_SEED, f"0 to {LARGEST_SEED}")
    refuse_temperatures(temperature=temperature)
    refuse_outside("top_k", top_k, 0 <= top_k <= most, f"0 (all) to {most}")
    refuse_outside("top_p", top_p, 0 < top_p <= 1, "more than 0, up to 1 (all)")


def refuse_temperatures(**temperatures: float) -> None:
    """Refuse temperatures below 0, above ``LARGEST_SCALE``, or NaN.

    Raises:
        ValueError: a temperature is out of range; the message has its name.

    >>> refuse_temperatures(picture_temperature=-1.0)
    Traceback (most recent call last):
    ValueError: got picture_temperature = -1.0; wanted 0 (the likeliest id) or more, up to 1e+30
    """
    for name, value in temperatures.items():
        wanted = f"0 (the likeliest id) or more, up to {LARGEST_SCALE:g}"
        refuse_outside(name, value, 0 <= value <= LARGEST_SCALE, wanted)


def refuse_counts(**counts: int) -> None:
    """Refuse counts below 1 or above ``LARGEST_COUNT``.

    Raises:
        ValueError: a count is out of range; the message has its name.

    >>> refuse_counts(batch_size=0)
    Traceback (most recent call last):
    ValueError: got batch_size = 0; wanted 1 to 2147483647
    """
    for name, count in counts.items():
        refuse_outside(name, count, 1 <= count <= LARGEST_COUNT, f"1 to {LARGEST_COUNT}")


def refuse_outside(name: str, value: object, fits: bool, wanted: str) -> None:
    """Raise ValueError unless ``fits``; the message has the name, the value and what was wanted."""
    if not fits:
        raise ValueError(f"got {name} = {value}; wanted {wanted}")
