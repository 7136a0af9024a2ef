"""Samples from several sources: one source after another, and the next sample in place of one that cannot be used."""

from __future__ import annotations

import logging
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Generic, Protocol, TypeVar

from toklip_core.files import is_machine_error, named_error
from toklip_core.pictures import PictureError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

# Seconds before a sample is read again after an error of the machine, which may pass.
_PAUSES = (0.5, 2.0)

_log = logging.getLogger(__name__)


class Samples(Protocol[T_co]):
    """A map-style data set whose samples are functions of the epoch and the index alone.

    Workers copy it, so it must be picklable; randomness in it must come from :func:`derived_seed`, not from a
    global generator.
    """

    def __len__(self) -> int:
        """Return the number of samples in an epoch."""

    def __getitem__(self, key: tuple[int, int]) -> T_co:
        """Return the sample (epoch, index)."""


class Concatenation(Generic[T]):
    """The samples of several sources, one source after another, as :class:`Samples`.

    Args:
        sources: the sources, in order.
    """

    def __init__(self, sources: Sequence[Samples[T]]) -> None:
        self._sources = sources
        self._ends = list(accumulate(map(len, sources)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, key: tuple[int, int]) -> T:
        epoch, index = key
        number, place = self.place(index)
        return self._sources[number][epoch, place]

    def place(self, index: int) -> tuple[int, int]:
        """Return which source a sample comes from, counted from 0, and its index in that source."""
        number = bisect_right(self._ends, index)
        return number, index - (self._ends[number - 1] if number else 0)


class UnusableSampleError(ValueError):
    """A sample that a model cannot be trained on, and why."""


def first_usable(
    read: Callable[[int], T], index: int, count: int, *, name: Callable[[int], str], what: str
) -> T:
    """Return the sample ``index``, or the next that can be used: one broken file must not end a week's run.

    Each one that is left out is logged with its name. The first sample comes after the last. After an error of
    the machine, such as too many open files, the sample is read again, at most twice, and no other takes its place: the
    same run would train on other data.

    Args:
        read: returns a sample, or raises PictureError or UnusableSampleError.
        index: number of the sample, from 0 to ``count`` - 1.
        count: number of samples.
        name: returns what messages call a sample.
        what: plural noun for the samples, for messages.

    Raises:
        ValueError: no sample can be used.
        MemoryError, OSError: the machine cannot read a sample, which the message names; the class is that of the error.
    """
    problem = ""
    for offset in range(count):
        number = (index + offset) % count
        try:
            return _read_again(read, number, name)
        except (PictureError, UnusableSampleError) as error:
            problem = f"{name(number)}: {error}"
            _log.warning("left out: %s", problem)
    raise ValueError(f"none of {count} {what} can be used; the last is {problem}")


def _read_again(read: Callable[[int], T], number: int, name: Callable[[int], str]) -> T:
    """Read a sample, and again while the machine fails; its last error is raised with the sample's name."""
    for pause in _PAUSES:
        try:
            return read(number)
        except Exception as error:
            if not is_machine_error(error):
                raise
        time.sleep(pause)
    try:
        return read(number)
    except Exception as error:
        if not is_machine_error(error):
            raise
        raise named_error(error, name(number)) from error
