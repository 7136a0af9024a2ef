"""Where a command writes: looked at before any work, so that it neither fails at the end nor writes over an input."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from toklip_core.pictures import find_pictures

#: What a picture that is written may end in.
WRITTEN_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def refuse_output(
    out: Path | str, inputs: Iterable[Path | str] = (), *, option: str = "--out", suffixes: Sequence[str] = ()
) -> None:
    """Refuse a file that cannot be written, or that is one of the inputs by whatever name.

    Args:
        out: the file that is to be written; what is there before is written over.
        inputs: files, folders, globs or tars that are read; what is not there is left for their reader to say.
        option: that names ``out``.
        suffixes: what its name must end in; none: anything.

    Raises:
        FileNotFoundError, PermissionError: its folder is not there, or nothing can be written into it.
        ValueError: its name ends otherwise, or it is a folder, or one of the inputs.
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
    """FileNotFoundError or PermissionError unless something of this name can be written into a folder."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder} to write {name} into; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"nothing can be written into {folder}, and {name} is to be; choose another place")


def _files(inputs: Iterable[Path | str]) -> Iterator[Path]:
    """The files that are read, tars as they are."""
    for item in inputs:
        if Path(item).is_file():
            yield Path(item)
            continue
        try:
            yield from (source.path for source in find_pictures([item]))
        except (FileNotFoundError, ValueError):  # said by the reader, in its own words
            continue
