"""Locks on open files. A lock ends with the process that holds it, however it ends; workers do not inherit it.

Only :func:`folder_lock` is shared with forked workers: if its process is killed, it ends with the last of them.

On a file system without locks nothing is locked, and users must see to it that only one process writes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

# Errors of mounts without locks, or without locks on folders: some kinds of NFS, FUSE and Lustre.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF}


def lock_exclusively(file: IO[Any]) -> bool:
    """Lock a file, open for writing, for this process only; return False if another process holds a lock."""
    if os.name != "posix":
        return True
    import fcntl

    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # which of them depends on the system
        return False
    except OSError as error:
        _refuse_unknown(error)
    return True


@contextmanager
def held_alone(path: Path, problem: str) -> Iterator[None]:
    """Lock a file for this process only while inside, creating it if missing; OSError(problem) if it is locked."""
    with path.open("a") as file:
        if not lock_exclusively(file):
            raise OSError(problem)
        yield


def lock_shared(file: IO[Any]) -> None:
    """Lock a file, open for reading, together with other readers; wait while a process holds it exclusively."""
    if os.name != "posix":
        return
    import fcntl

    try:
        fcntl.lockf(file, fcntl.LOCK_SH)
    except OSError as error:
        _refuse_unknown(error)


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Let only one process at a time be inside this for an existing folder; wait for the others.

    Afterwards the folder is free, also while workers that were forked inside are still running.
    """
    if os.name != "posix":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        locked = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            _refuse_unknown(error)
            locked = False
        try:
            yield
        finally:
            if locked:  # closing alone would leave the lock to a worker that was forked inside
                fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def _refuse_unknown(error: OSError) -> None:
    if error.errno not in _NO_LOCKS:
        raise error
