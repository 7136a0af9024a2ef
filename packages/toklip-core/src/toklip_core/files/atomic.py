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
def replacing(path: Path) -> Iterator[Path]:
    """Yield where to write a file; at the end it takes the place of ``path``.

    Until then what was at ``path`` stays as it is, and for good if the writing fails. Two processes must not write one
    path at one time.

    Raises:
        OSError: it cannot be put there.
    """
    beside = hidden_path(path)
    delete(beside)
    try:
        yield beside
        beside.replace(path)
    except BaseException:  # a full disk, or an impatient user, must not keep the half of it
        delete(beside)
        raise


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


def move_into(source: Path, folder: Path, *, last: str) -> None:
    """Move what is in a folder into another one, in place of what has the same names there; the file ``last`` last."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir(), key=lambda path: (path.name == last, path.name)):
        if path.is_dir():
            delete(folder / path.name)
        path.replace(folder / path.name)


def delete(path: Path) -> None:
    """Delete a file, or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
