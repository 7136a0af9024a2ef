"""Checks of output files before any work, so that a command neither fails at the end nor overwrites an input."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from toklip_core.pictures.find import find_pictures

#: Suffixes of pictures that are written.
WRITTEN_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def refuse_output(
    out: Path | str, inputs: Iterable[Path | str] = (), *, option: str = "--out", suffixes: Sequence[str] = ()
) -> None:
    """Refuse an output file that cannot be written, or that is one of the inputs, under whatever name.

    Args:
        out: file to write; an existing file is allowed and will be overwritten.
        inputs: files, folders, globs or tars that are read; missing ones are left to their reader to report.
        option: option that named ``out``, for the message.
        suffixes: suffixes that are allowed; none: all.

    Raises:
        FileNotFoundError, PermissionError: the folder of ``out`` is missing or not writable.
        ValueError: ``out`` has another suffix, is a folder, or is one of the inputs.
    """
    out = Path(out)
    if suffixes and out.suffix.lower() not in suffixes:
        raise ValueError(f"got {option} {out}; wanted a name that ends in {' or '.join(suffixes)}")
    refuse_folder(out.absolute().parent, out.name)
    if out.is_dir():
        raise ValueError(f"got {option} {out}, which is a folder; wanted the name of a file")
    if out.exists():
        for path in _files(inputs):
            if path.exists() and path.samefile(out):
                raise ValueError(
                    f"got {option} {out}, which is one of the inputs and would be written over; choose another name"
                )


def refuse_folder(folder: Path, name: str) -> None:
    """Raise FileNotFoundError or PermissionError unless a file of this name can be written into a folder."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder} to write {name} into; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"nothing can be written into {folder}, and {name} is to be; choose another place")


def _files(inputs: Iterable[Path | str]) -> Iterator[Path]:
    """Yield the files that are read; a tar counts as one file."""
    for item in inputs:
        if Path(item).is_file():
            yield Path(item)
            continue
        try:
            yield from (source.path for source in find_pictures([item]))
        except (FileNotFoundError, ValueError):  # the reader of the inputs reports these
            continue
