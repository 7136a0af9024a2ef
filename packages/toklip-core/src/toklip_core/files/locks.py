"""Locks on files. A lock ends with the process that holds it, however it ends; workers do not inherit it.

The system's locks on files do not keep the threads of one process apart, and closing any handle of a file ends those of
the whole process. So a table of this process says what it holds, and keeps the one handle.

Only :func:`folder_lock` is shared with forked workers: if its process is killed, it ends with the last of them.

On a file system without locks nothing is locked, and users must see to it that only one process writes.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

# Seconds between two attempts to share a file that another process holds alone, and until the last of them.
_PAUSE, _LONGEST_WAIT = 0.05, 60.0

# Errors of mounts without locks, or without locks on folders: some kinds of NFS, FUSE and Lustre.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF}


@dataclass
class _Lock:
    """A file that this process has locked: for one holder, or for several that share it."""

    file: IO[Any]
    shared: bool
    holders: int = 1


class _Table:
    """The files that this process has locked, by their paths without links."""

    def __init__(self) -> None:
        #: Held while a file is opened and locked, or closed: in between, another thread would lose its lock.
        self.guard = threading.Lock()
        self.held: dict[Path, _Lock] = {}

    def forget(self) -> None:
        """Start anew in a forked process, which inherits the handles but no lock, and perhaps a guard that is held."""
        for held in self.held.values():
            held.file.close()
        self.guard, self.held = threading.Lock(), {}


_TABLE = _Table()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_TABLE.forget)


def _try_to_lock(file: IO[Any], *, shared: bool) -> bool:
    """Lock an open file, for this process only or together with others; return False if another process prevents it."""
    if os.name != "posix":
        return True
    import fcntl

    try:
        fcntl.lockf(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # which of them depends on the system
        return False
    except OSError as error:
        _refuse_unknown(error)
    return True


@contextmanager
def held_alone(path: Path, problem: str) -> Iterator[None]:
    """Lock a file while inside, creating it if missing; OSError(problem) if any thread of any process has locked it."""
    path = path.resolve()
    with _TABLE.guard:
        if path in _TABLE.held:
            raise OSError(problem)
        held = _take(path, shared=False)
        if held is None:
            raise OSError(problem)
    try:
        yield
    finally:
        _release(path, held)


@contextmanager
def held_together(path: Path, problem: str) -> Iterator[None]:
    """Lock a file together with others, creating it if missing; OSError(problem) if this process holds it alone.

    Another process that holds it alone is waited for, but no longer than a minute: some mounts refuse every lock.
    """
    path, last = path.resolve(), time.monotonic() + _LONGEST_WAIT
    while (held := _share(path, problem)) is None:
        if time.monotonic() > last:
            raise OSError(problem)
        time.sleep(_PAUSE)
    try:
        yield
    finally:
        _release(path, held)


def _share(path: Path, problem: str) -> _Lock | None:
    """Lock a file together with others; return None while another process holds it alone."""
    with _TABLE.guard:
        held = _TABLE.held.get(path)
        if held is None:
            return _take(path, shared=True)
        if not held.shared:
            raise OSError(problem)
        held.holders += 1
        return held


def _take(path: Path, *, shared: bool) -> _Lock | None:
    """Lock a file that this process has not locked, while its guard is held; return None if another process has."""
    file = path.open("a+")
    locked = False
    try:
        locked = _try_to_lock(file, shared=shared)
    finally:
        if not locked:
            file.close()
    if not locked:
        return None
    held = _TABLE.held[path] = _Lock(file, shared)
    return held


def _release(path: Path, held: _Lock) -> None:
    with _TABLE.guard:
        if _TABLE.held.get(path) is not held:  # in a process that was forked inside
            return
        held.holders -= 1
        if not held.holders:
            del _TABLE.held[path]
            held.file.close()


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
