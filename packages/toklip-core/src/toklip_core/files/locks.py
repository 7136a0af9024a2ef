"""Locks on open files: they end with the process that holds them, however it ends, and its workers do not inherit them.

Where the file system knows no locks there are none, and the caller must take care.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

# What mounts say that know no locks, or none of a folder: some of NFS, FUSE and Lustre.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF}


def lock_exclusively(file: IO[Any]) -> bool:
    """Lock a file, open for writing, for this process only; False if another holds it."""
    if os.name != "posix":
        return True
    import fcntl

    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # the system's choice
        return False
    except OSError as error:
        _refuse_unknown(error)
    return True


@contextmanager
def held_alone(path: Path, problem: str) -> Iterator[None]:
    """Lock a file, made if it is missing, for this process only while inside; OSError(problem) if another holds it."""
    with path.open("a") as file:
        if not lock_exclusively(file):
            raise OSError(problem)
        yield


def lock_shared(file: IO[Any]) -> None:
    """Lock a file, open for reading, beside others that do the same; wait while a process holds it alone."""
    if os.name != "posix":
        return
    import fcntl

    try:
        fcntl.lockf(file, fcntl.LOCK_SH)
    except OSError as error:
        _refuse_unknown(error)


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Be the only one that is inside of this for a folder, which has to be there; wait for the others."""
    if os.name != "posix":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            _refuse_unknown(error)
        yield
    finally:
        os.close(descriptor)


def _refuse_unknown(error: OSError) -> None:
    if error.errno not in _NO_LOCKS:
        raise error
