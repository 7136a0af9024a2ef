"""Refusal of pipes, sockets and devices, because reading them would wait or never end."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def refuse_special(path: Path | str) -> None:
    """Raise OSError if a path is a pipe, a socket or a device. A missing path is left to whoever opens it."""
    try:
        kind = _KINDS.get(stat.S_IFMT(os.stat(path).st_mode))  # noqa: PTH116  (a str as well)
    except (OSError, ValueError):
        return
    if kind:
        raise OSError(f"{path} is {kind}, not a file; write what it gives into a file, and name that")
