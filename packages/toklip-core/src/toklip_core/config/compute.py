"""Devices, data types, worker processes and progress bars, which all commands share. Importing it costs nothing."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, NoReturn

from toklip_core.config.ranges import LARGEST_MAX_PIXELS, MAX_PIXELS, MOST_WORKERS, refuse_counts, refuse_outside

if TYPE_CHECKING:
    import torch
    from tqdm import tqdm

Dtype = Literal["float32", "bfloat16"]

_LINE_SECONDS = 30


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Where and how something is computed: one value for encoding, decoding and every evaluation.

    A dataclass and no pydantic model: commands import it at the start of ``toklip``, which pydantic would slow down.

    Args:
        device: device to compute on.
        dtype: precision of the networks; codes are searched in float32 in any case.
        batch_size: number of pictures, or questions, at a time.
        workers: number of processes that read pictures, at most 256; 0 reads in this one. Encoding uses them.
        max_pixels: largest width times height of a picture that is read, see
            :func:`toklip_core.pictures.open_picture`.
        progress: show bars on stderr; see :func:`progress_bar`.

    Raises:
        ValueError: a number is out of its range, or there is no such dtype.

    >>> Compute(batch_size=64).device
    'cpu'
    """

    device: torch.device | str = "cpu"
    dtype: Dtype = "float32"
    batch_size: int = 32
    workers: int = 0
    max_pixels: int = MAX_PIXELS
    progress: bool = False

    def __post_init__(self) -> None:
        refuse_counts(batch_size=self.batch_size)
        refuse_outside("workers", self.workers, 0 <= self.workers <= MOST_WORKERS, f"0 to {MOST_WORKERS}")
        most = LARGEST_MAX_PIXELS
        refuse_outside("max_pixels", self.max_pixels, 1 <= self.max_pixels <= most, f"1 to {most}")
        refuse_outside("dtype", self.dtype, self.dtype in ("float32", "bfloat16"), "float32 or bfloat16")

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch has it."""
        import torch

        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


def default_device() -> str:
    """Return the accelerator of this process, such as "cuda:0" or "mps:0", or "cpu" if there is none.

    The environment variable LOCAL_RANK, which torchrun sets, chooses among several accelerators.
    """
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cpu" if accelerator is None else f"{accelerator.type}:{os.environ.get('LOCAL_RANK', '0')}"


def refuse_missing_device(device: torch.device | str) -> None:
    """Raise ValueError if the device is missing, or if it is torch's "meta", which holds no numbers."""
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError as error:  # torch lists two dozen kinds, most of which nobody has
        raise ValueError(f"got the device {str(device)!r}; name one such as cpu, cuda, cuda:1 or mps") from error
    if kind == "meta":
        raise ValueError("got the device 'meta', which computes nothing; name another one, such as cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # either, depending on the build of torch
        raise ValueError(f"got the device {str(device)!r}: {str(error).splitlines()[0]}") from error


def default_workers() -> int:
    """Return the number of worker processes: one per core, divided among torchrun's processes here, at most 16.

    The cores are those that this process may use, which a scheduler such as Slurm limits.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, max(1, usable // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def progress_bar(total: int | None, *, shown: bool, unit: str = "pictures") -> tqdm[NoReturn]:
    """Return a progress bar on stderr; if stderr is not a terminal, it prints a line every half minute."""
    from tqdm import tqdm

    # smoothing=0 is the mean speed: batches of several processes come in bursts.
    bar = partial(tqdm, total=total, unit=f" {unit}", disable=not shown, smoothing=0)
    if sys.stderr.isatty():
        return bar()
    line = "{n_fmt} of {total_fmt}{unit}, {rate_fmt}, {elapsed} gone, {remaining} to go\n"
    return bar(bar_format=line, delay=_LINE_SECONDS, mininterval=_LINE_SECONDS, miniters=1)
