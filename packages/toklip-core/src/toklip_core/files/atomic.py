"""Atomic writing: a file is written under a hidden name in the same folder, then renamed.

The hidden name depends only on the final one. So whatever a killed process left is overwritten by the next process
that writes the same file, and is never taken for the file itself.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

# Largest number of bytes in a file's name on most file systems.
_LONGEST_NAME = 255


@contextmanager
def replacing(path: Path, *, beside: Path | None = None, to_disk: bool = False, new: bool = False) -> Iterator[Path]:
    """Yield a path to write a file to; at the end that file replaces ``path``.

    If writing fails, ``path`` stays unchanged. Two processes must not write the same path at the same time.

    Args:
        path: final path of the file.
        beside: path to write to first; by default the hidden one beside ``path``.
        to_disk: wait until the bytes are on the disk; see :func:`flush_to_disk`.
        new: refuse to replace a file that has appeared at ``path``.

    Raises:
        OSError: the file cannot be written or renamed, or there is one that must not be replaced.
    """
    beside = hidden_path(path) if beside is None else beside
    delete(beside)
    try:
        yield beside
        if to_disk:
            flush_to_disk(beside)
        if new and path.exists():
            raise OSError(f"{path} was written meanwhile by somebody else, and stays; run it again when that has ended")
        beside.replace(path)
    except BaseException:  # such as a full disk or Ctrl-C, which must not leave half a file
        delete(beside)
        raise


@contextmanager
def filling(folder: Path, *, beside: Path, last: str) -> Iterator[Path]:
    """Yield a new folder to write files in; at the end they move to ``folder``, over files of the same names.

    If writing fails, ``folder`` stays unchanged. If moving fails, or the process is killed, it has no file ``last``.

    Args:
        folder: folder to fill; it is created if missing, and its other files stay.
        beside: path of the new folder, on the same file system; leftovers of a killed process there are deleted.
        last: name of the file whose old version is deleted first, and that is moved last; if it exists, so do the
            others.

    Raises:
        OSError: the files cannot be written or moved.
    """
    delete(beside)
    try:
        beside.mkdir()
        yield beside
        folder.mkdir(parents=True, exist_ok=True)
        delete(folder / last)
        for path in sorted(beside.iterdir(), key=lambda path: (path.name == last, path.name)):
            if path.is_dir():
                delete(folder / path.name)
            path.replace(folder / path.name)
    finally:  # also after a full disk or Ctrl-C, which must not leave half of the files
        delete(beside)


def flush_to_disk(*paths: Path) -> None:
    """Wait until files or folders are on the disk, because a rename may survive a power cut that loses the bytes."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8. If that fails, raise OSError and leave the old file unchanged."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def hidden_path(path: Path) -> Path:
    """Return the hidden path, in the same folder, where a file is written before it is renamed."""
    name = f".{path.name}.tmp"
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = f".{blake2b(os.fsencode(path.name), digest_size=16).hexdigest()}.tmp"
    return path.with_name(name)


def delete(path: Path) -> None:
    """Delete a file, or a folder with its contents, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
