"""Kinds of paths: pipes, sockets and devices are refused, because reading them would wait or never end."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

# Errors of a path at which there is nothing.
_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}

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


def is_file(path: Path | str) -> bool:
    """Return whether a path is a file, or a link to one; OSError if that cannot be told, as on a disk that fails.

    ``Path.is_file`` of Python 3.14 returns False for every error, as if the file were missing.
    """
    try:
        return stat.S_ISREG(os.stat(path).st_mode)  # noqa: PTH116  (a str as well)
    except ValueError:  # a name with a zero byte
        return False
    except OSError as error:
        if error.errno in _ABSENT:
            return False
        raise
