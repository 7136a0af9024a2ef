"""Files that are whole or not there: they are written beside, under a hidden name, then renamed.

The hidden name depends on the final one alone, so that what a killed process left is written over by the next that
writes the same, and is never taken for the thing itself.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

# Bytes of a file's name, on most file systems.
_LONGEST_NAME = 255


@contextmanager
def replacing(path: Path, *, beside: Path | None = None, to_disk: bool = False) -> Iterator[Path]:
    """Yield where to write a file; at the end it takes the place of ``path``.

    Until then what was at ``path`` stays as it is, and for good if the writing fails. Two processes must not write one
    path at one time.

    Args:
        path: final path of the file.
        beside: path to write to first; by default the hidden one beside ``path``.
        to_disk: wait until the bytes are on the disk; see :func:`flush_to_disk`.

    Raises:
        OSError: it cannot be put there.
    """
    beside = hidden_path(path) if beside is None else beside
    delete(beside)
    try:
        yield beside
        if to_disk:
            flush_to_disk(beside)
        beside.replace(path)
    except BaseException:  # a full disk, or an impatient user, must not keep the half of it
        delete(beside)
        raise


@contextmanager
def filling(folder: Path, *, beside: Path, last: str) -> Iterator[Path]:
    """Yield a new folder to write files in; at the end they take the place of those with the same names in ``folder``.

    Until then what is in ``folder`` stays as it is, and for good if the writing fails.

    Args:
        folder: made if it is missing; other files in it are left alone.
        beside: path of the new folder, on the same file system; what a killed process left there is deleted.
        last: name of the file that is moved last, whose presence says that the others are there.

    Raises:
        OSError: the files cannot be put there.
    """
    delete(beside)
    try:
        beside.mkdir()
        yield beside
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(beside.iterdir(), key=lambda path: (path.name == last, path.name)):
            if path.is_dir():
                delete(folder / path.name)
            path.replace(folder / path.name)
    finally:  # a full disk, or an impatient user, must not keep the half of it
        delete(beside)


def flush_to_disk(*paths: Path) -> None:
    """Wait until files or folders are on the disk: a rename can outlive a power failure that the bytes do not."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8; OSError if that fails, and what was there before is left."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def hidden_path(path: Path) -> Path:
    """Return the place beside a path where it is written first."""
    name = f".{path.name}.tmp"
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = f".{blake2b(os.fsencode(path.name), digest_size=16).hexdigest()}.tmp"
    return path.with_name(name)


def delete(path: Path) -> None:
    """Delete a file, or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
