"""``toklip decode``: decodes a token store into pictures. It never writes outside the given folder."""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from toklip_core.config import Compute, progress_bar, refuse_missing_device
from toklip_core.files import held_alone, replacing
from toklip_core.pictures import to_picture
from toklip_core.store.reader import TokenRow, TokenStore
from toklip_core.store.writer import fullness_explained
from toklip_core.tokenizer import Tokenizer

#: File that the process that decodes into the folder locks.
_LOCK = ".decode.lock"
# Largest number of bytes in a file's name on most file systems.
_LONGEST_NAME = 255
_NO_CHARACTER = re.compile(r"[\x00-\x1f\x7f\\]")
# Names that Windows reserves for devices and drives. It also drops dots and spaces at the end of a name.
_NO_START = re.compile(r"(?i)^((con|prn|aux|nul|com\d|lpt\d)(\.|$)|[a-z]:)")
_NO_END = re.compile(r"[. ]$")
# Errors for a path that the system does not accept, or that is a folder or below a file.
_OF_THE_NAME = {
    errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY
}  # fmt: skip
# Number of characters of a key that a message shows.
_SHOWN = 80


@dataclass(frozen=True, kw_only=True)
class DecodeReport:
    """Report of one call of :func:`decode_store`."""

    out: str
    #: Number of pictures written by this call.
    pictures: int
    #: Number of pictures that existed before.
    skipped: int
    seconds: float
    stopped: bool
    #: Number of pictures whose keys cannot be file names, so they have other names; see :func:`picture_path`.
    renamed: int = 0
    #: First of these, as "key: file".
    first_renamed: str = ""
    #: Number of pictures that are not written, because their keys lead out of the folder or the path is not possible.
    left_out: int = 0
    #: First of these, as "key: reason".
    first_left_out: str = ""

    def as_json(self) -> dict[str, str | int | float | bool]:
        """Return the report as JSON data."""
        return asdict(self) | {"pictures_per_second": self.pictures / self.seconds}

    def as_text(self) -> str:
        """Return the report as one line of text."""
        text = f"{self.pictures} picture{'s' * (self.pictures != 1)} written into {self.out} in {self.seconds:.1f} s"
        if self.skipped:
            text += f"; {self.skipped} were there before and stay as they are"
        if self.stopped:
            text += "; stopped before the end: run the same command again to continue"
        if self.renamed:
            text += f"\n{self.renamed} have another name than their key, which no file can have; the first: "
            text += self.first_renamed
        if self.left_out:
            text += f"\n{self.left_out} could not be written; the first: {self.first_left_out}"
        return text


def decode_store(
    store: Path | str,
    out: Path | str,
    *,
    weights: Path | str | None = None,
    compute: Compute = Compute(),
    stop: Callable[[], bool] | None = None,
) -> DecodeReport:
    """Write the pictures of a token store as ``OUT/KEY.png``; existing files are skipped.

    Pictures whose keys cannot be file names get other names, see :func:`picture_path`, and those whose keys lead out
    of the folder are left out; the report counts both.

    Args:
        store: what :func:`encode_pictures` made.
        out: folder to write into; it is created if missing. Nothing is written outside of it, whatever the keys are.
        weights: see :func:`toklip_core.tokenizer.load_tokenizer`; they must be those the store was made with.
        compute: where, and how many pictures at a time; the tokenizer computes in float32.
        stop: function that is called after every batch; once it returns True, decoding stops.

    Raises:
        FileNotFoundError: there is no store, or the weights are not there.
        LookupError: the store's tokenizer is not installed.
        ValueError: the weights are others, the store is damaged or is the folder to write into, or no picture of it can
            be written.
        OSError: the folder cannot be written, or another decode writes into it.
    """
    started = time.perf_counter()
    refuse_missing_device(compute.device)
    tokens, folder = TokenStore(store, features=()), Path(out)
    if folder.exists() and folder.samefile(tokens.path):
        raise ValueError(f"got {out} as the store and as the folder of pictures; name another folder for the pictures")
    given = None if weights is None else Path(weights)
    model = tokens.info.tokenizer.load(where=f"the token store {store}", weights=given).to(compute.device)
    folder.mkdir(parents=True, exist_ok=True)
    problem = f"another decode writes into {folder}; wait for its end, or name another folder"
    counts = _Counts(folder)
    stopped = False
    with (
        held_alone(folder / _LOCK, problem),
        fullness_explained(folder),
        progress_bar(len(tokens), shown=compute.progress) as bar,
    ):
        rows = iter(tokens)
        while batch := list(islice(rows, compute.batch_size)):
            _write_pictures(model, counts.missing(batch), compute.device, counts)
            bar.update(len(batch))
            if stopped := stop is not None and stop():
                break
    if counts.left_out and not counts.pictures + counts.skipped:
        raise ValueError(f"none of {counts.left_out} pictures can be written; the first is {counts.first_left_out}")
    seconds = time.perf_counter() - started
    return DecodeReport(out=str(folder), seconds=seconds, stopped=stopped, **counts.figures())


def picture_path(folder: Path, key: str) -> Path:
    """Return the path of a key's picture, KEY.png below the folder, with names changed where necessary.

    A name in the key that cannot be a file name is cleaned and shortened, and gets ``~`` and 16 hexadecimal digits of
    its digest, so that names stay distinct. Such names have more than 255 bytes with their suffix, contain control
    characters or backslashes, are devices of Windows such as CON, end in a dot or a space, or are empty, as before the
    first slash of an absolute path.

    Raises:
        ValueError: the key leads out of the folder: by "..", or by a link that lies in the folder.
    """
    parts = key.split("/")
    path = folder.joinpath(*(_name_of(part) for part in parts[:-1]), _name_of(parts[-1], ".png"))
    if ".." in parts or not path.parent.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"the key leads out of the folder {folder}; nothing is written there")
    return path


@dataclass
class _Counts:
    """Counts of rows, and places of their pictures."""

    folder: Path
    pictures: int = 0
    skipped: int = 0
    renamed: int = 0
    first_renamed: str = ""
    left_out: int = 0
    first_left_out: str = ""

    def missing(self, rows: list[TokenRow]) -> list[tuple[TokenRow, Path]]:
        """Return the rows whose pictures do not exist yet, with their paths."""
        found = []
        for row in rows:
            try:
                path = picture_path(self.folder, row.key)
                there = path.exists() and not path.is_dir()
            except (ValueError, OSError) as error:
                self.leave_out(row, error)
                continue
            if path != self.folder / f"{row.key}.png":
                self.renamed += 1
                self.first_renamed = self.first_renamed or f"{_shown(row.key)}: {path}"
            self.skipped += there
            if not there:
                found.append((row, path))
        return found

    def leave_out(self, row: TokenRow, error: Exception) -> None:
        """Count a row that cannot be written."""
        self.left_out += 1
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        self.first_left_out = self.first_left_out or f"{_shown(row.key)}: {why}"

    def figures(self) -> dict[str, Any]:
        """Return the counts by name."""
        return {name: value for name, value in vars(self).items() if name != "folder"}


def _write_pictures(
    model: Tokenizer, rows: list[tuple[TokenRow, Path]], device: torch.device | str, counts: _Counts
) -> None:
    if not rows:
        return
    pixels = model.decode(torch.stack([row.ids for row, _ in rows]).to(device)).cpu()
    for picture, (row, path) in zip(pixels, rows, strict=True):
        try:
            if path.is_dir():  # the folder of a longer key, perhaps created a moment ago
                raise IsADirectoryError(errno.EISDIR, "there is a folder of this name", str(path))
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as beside:
                to_picture(picture).save(beside, format="PNG", compress_level=1)
        except OSError as error:
            if error.errno not in _OF_THE_NAME:
                raise
            counts.leave_out(row, error)
        else:
            counts.pictures += 1


def _name_of(part: str, suffix: str = "") -> str:
    """Return a name in a key, with a suffix, in a form that every file system accepts."""
    longest = _LONGEST_NAME - len(suffix)
    wrong = any(pattern.search(part) for pattern in (_NO_CHARACTER, _NO_START, _NO_END))
    if part and len(part.encode()) <= longest and not wrong:
        return part + suffix
    digest = f"~{blake2b(part.encode(), digest_size=8).hexdigest()}"
    clean = _NO_START.sub(r"_\1", _NO_CHARACTER.sub("_", part)).replace(":", "_")
    return clean.encode()[: longest - len(digest)].decode("utf-8", "ignore") + digest + suffix


def _shown(key: str) -> str:
    """Return a key for messages: in quotes, and without the middle if it is long."""
    return repr(key if len(key) <= _SHOWN else f"{key[: _SHOWN // 2]}...{key[-_SHOWN // 2 :]}")
