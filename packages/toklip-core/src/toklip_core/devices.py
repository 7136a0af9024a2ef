"""Devices, data types, worker processes and progress bars: what every command asks for."""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import Literal, NoReturn

import torch
from tqdm import tqdm

_LINE_SECONDS = 30


def default_device() -> str:
    """Return the accelerator of this process, such as "cuda:0" or "mps:0", or "cpu" if there is none.

    LOCAL_RANK, which torchrun sets, says which of several it is.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cpu" if accelerator is None else f"{accelerator.type}:{os.environ.get('LOCAL_RANK', '0')}"


def refuse_missing_device(device: torch.device | str) -> None:
    """ValueError unless there is such a device, and it holds numbers: torch's "meta" holds none."""
    try:
        if torch.device(device).type == "meta":
            raise ValueError("got the device 'meta', which computes nothing; name another one, such as cpu")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either, by how it was built
        raise ValueError(f"got the device {str(device)!r}: {str(error).splitlines()[0]}") from error


def default_workers() -> int:
    """Return one process per core, shared among the processes that torchrun started on this machine; at most 16."""
    return min(16, max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def progress_bar(total: int | None, *, shown: bool) -> tqdm[NoReturn]:
    """Return a bar of pictures on stderr; where that is no terminal, it is a line every half a minute, for a log."""
    bar = partial(tqdm, total=total, unit=" pictures", disable=not shown)
    if sys.stderr.isatty():
        return bar()
    line = "{n_fmt} of {total_fmt}{unit}, {rate_fmt}, {elapsed} gone, {remaining} to go\n"
    return bar(bar_format=line, delay=_LINE_SECONDS, mininterval=_LINE_SECONDS, miniters=1)


Dtype = Literal["float32", "bfloat16"]
