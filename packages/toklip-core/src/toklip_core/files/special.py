"""What has a path and is no file: pipes, sockets and devices, whose reading would wait, or never end."""

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
    """OSError if a pipe, a socket or a device is at a path; what is not there is left to those who open it."""
    try:
        kind = _KINDS.get(stat.S_IFMT(os.stat(path).st_mode))  # noqa: PTH116  (a str as well)
    except (OSError, ValueError):
        return
    if kind:
        raise OSError(f"{path} is {kind}, not a file; write what it gives into a file, and name that")
