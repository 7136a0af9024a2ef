"""Captioned pictures by number, from what people have: files and tars, tables, data sets.

Each reader holds what it has found as arrays: workers that are forked share them, while Python objects would be copied,
page by page, as their references are counted.
"""

from __future__ import annotations

import csv
import io
import logging
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from toklip_core.characters import replace_lone_surrogates
from toklip_core.data import Entry, PictureError, entries, find_pictures, open_picture
from toklip_core.sources import CaptionedDataset, CaptionedPictures, CaptionedTable
from toklip_core.tars import Span, TarMember
from toklip_core.textfiles import open_text, parsed

Captioned = tuple[Image.Image, Sequence[str]]

# So many pictures of a table are looked for before its root is taken to be wrong.
_LOOKED_FOR = 100

_log = logging.getLogger(__name__)


class CaptionReader(Protocol):
    """Pictures with captions, by number; picklable, for workers."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, number: int) -> Captioned:
        """Return an RGB picture and its captions, one or more; PictureError if either is missing or cannot be read."""

    def place(self, number: int) -> str:
        """Return where a picture lies, for messages."""

    def all_captions(self) -> Iterator[str] | None:
        """Yield every caption, once or more often, as it is wanted; None where that would mean to read every file."""


class PictureFiles:
    """Files and members of tars with a .txt or .json beside them.

    Finding the members of a tar means to read its headers, 0.1 ms for a picture; each then takes 64 bytes.

    Raises:
        FileNotFoundError: an input is not there, or there is no picture.
        ValueError: no picture has a caption.
    """

    def __init__(self, source: CaptionedPictures) -> None:
        paths: dict[bytes, int] = {}
        rows = array("q")
        found, first = 0, ""
        for entry in entries(find_pictures(source.inputs)):
            found += 1
            if problem := _why_left_out(entry):
                first = first or f"{entry.key}: {problem}"
                continue
            member = entry.member or TarMember()
            spans = (member.span, member.text or _ABSENT, member.facts or _ABSENT)
            file = paths.setdefault(os.fsencode(entry.path), len(paths))
            rows.extend((file, int(entry.member is not None), *(number for span in spans for number in span)))
        if not rows:
            raise ValueError(
                f"none of {found} pictures in {', '.join(source.inputs)} has a caption; the first is {first}"
            )
        self._paths = pa.array(list(paths), pa.large_binary())
        self._rows = np.frombuffer(rows, np.int64).reshape(-1, 8)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Captioned:
        entry = self._entry(number)
        caption = entry.caption()
        if caption is None:
            raise PictureError("no caption, or an empty one")
        return entry.image(), [caption]

    def place(self, number: int) -> str:
        """Return the file, and where in it."""
        entry = self._entry(number)
        return str(entry.path) if entry.member is None else f"{entry.path}, byte {entry.member.span.offset}"

    def all_captions(self) -> None:
        """Return None: each is a file."""

    def _entry(self, number: int) -> Entry:
        file, is_member, *numbers = self._rows[number].tolist()
        path = Path(os.fsdecode(self._paths[file].as_py()))
        if not is_member:
            return Entry(path.name, path)
        picture, text, facts = (Span(*numbers[i : i + 2]) for i in (0, 2, 4))
        return Entry(path.name, path, TarMember(picture, _present(text), _present(facts)))


class PictureTable:
    """The rows of a CSV, TSV or JSONL file that have a caption.

    Raises:
        FileNotFoundError: the table is not there, or the pictures are not where it says.
        ValueError: it is no such table, a column is missing, or no row has a caption.
    """

    def __init__(self, source: CaptionedTable) -> None:
        self._root = source.table.parent if source.root is None else source.root
        paths: list[str] = []
        captions: list[list[str]] = []
        left_out = 0
        for line, row in _table_rows(source.table, (source.image, source.caption)):
            texts = _captions(row[source.caption], f"{source.table}, line {line}: {source.caption!r}")
            if not isinstance(path := row[source.image], str) or not path:
                raise ValueError(f"{source.table}, line {line}: {source.image!r} is {path!r}; it must be a path")
            if texts:
                paths.append(path)
                captions.append(texts)
            left_out += not texts
        if not paths:
            raise ValueError(f"none of {left_out} rows of {source.table} has a caption in {source.caption!r}")
        if left_out:
            _log.warning("%d of %d rows of %s have no caption", left_out, left_out + len(paths), source.table)
        if not any((self._root / path).is_file() for path in paths[:_LOOKED_FOR]):
            raise FileNotFoundError(
                f"the pictures of {source.table} are not where it says, the first is {self._root / paths[0]}; set root"
            )
        self._paths = pa.array(paths, pa.large_string())
        self._captions = pa.array(captions, pa.large_list(pa.large_string()))

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> Captioned:
        path = Path(self.place(number))
        return Entry(path.name, path).image(), self._captions[number].as_py()

    def place(self, number: int) -> str:
        """Return the picture's path."""
        return str(self._root / self._paths[number].as_py())

    def captions(self, number: int) -> list[str]:
        """Return the captions of a row; the picture is not read."""
        return list(self._captions[number].as_py())

    def all_captions(self) -> Iterator[str]:
        """Yield each caption once."""
        return (caption.as_py() for caption in pc.unique(self._captions.flatten()))


class PictureDataset:
    """The rows of Parquet files or of a data set of the hub, mapped into memory by the library `datasets`.

    Raises:
        LookupError: the library is not installed.
        FileNotFoundError: there are no such files, or no such data set.
        ValueError: a column is missing, or the files are damaged.
        OSError: the hub cannot be reached.
    """

    def __init__(self, source: CaptionedDataset) -> None:
        self._name = source.name or ", ".join(source.files)
        self._image, self._caption = source.image, source.caption
        rows = _dataset(source)
        if missing := {source.image, source.caption} - set(rows.column_names):
            raise ValueError(
                f"{self._name} has no column {sorted(missing)[0]!r} (image and caption name them); its columns: "
                f"{', '.join(rows.column_names)}"
            )
        # As Arrow: the library would decode pictures by itself, whatever their size and their turn.
        self._rows = rows.select_columns([source.image, source.caption]).with_format("arrow")
        if not len(self):
            raise ValueError(f"{self._name} has no rows")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Captioned:
        row = self._rows[number].to_pylist()[0]
        captions = _captions(row[self._caption], f"{self.place(number)}: {self._caption!r}")
        if not captions:
            raise PictureError("no caption, or an empty one")
        return open_picture(self._picture(row[self._image])), captions

    def place(self, number: int) -> str:
        """Return the data set, and the row."""
        return f"{self._name}, row {number}"

    def all_captions(self) -> None:
        """Return None: there may be any number."""

    def _picture(self, value: object) -> io.BytesIO | str:
        facts = value if isinstance(value, dict) else {"bytes": value}
        data, path = facts.get("bytes"), facts.get("path")
        if isinstance(data, bytes):
            return io.BytesIO(data)
        if isinstance(path, str) and data is None:
            return path
        raise PictureError(f"{self._image!r} is a {type(value).__name__}, not a picture as the library stores it")


_ABSENT = Span(-1, -1)


def _present(span: Span) -> Span | None:
    return None if span == _ABSENT else span


def _why_left_out(entry: Entry) -> str:
    """Say why a picture is none to train on, as far as that shows unopened; empty if it may be one."""
    member = entry.member
    if member is None:
        return "" if any(entry.path.with_suffix(suffix).is_file() for suffix in (".txt", ".json")) else "no caption"
    if member.problem:
        _log.warning("%s is left out: %s", entry.key, member.problem)
        return member.problem
    return "" if member.text or member.facts else "no caption"


def _captions(value: object, where: str) -> list[str]:
    """Return the captions in a cell, none for an empty one."""
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where} is a {type(value).__name__}; it must be a text, or a list of texts")
    return [whole for text in texts if (whole := replace_lone_surrogates(text).strip())]


def _table_rows(table: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line, row) of a table that has these columns."""
    readers = {".csv": _csv_rows, ".tsv": _csv_rows, ".jsonl": _json_rows}
    if table.suffix.lower() not in readers:
        raise ValueError(f"got the table {table}; known are {', '.join(readers)}")
    try:
        with open_text(table, newline="") as file:
            for number, (line, row) in enumerate(readers[table.suffix.lower()](file, table)):
                for column in columns:
                    if column not in row and number == 0:
                        raise ValueError(f"{table} has no column {column!r}; its columns: {', '.join(map(str, row))}")
                yield line, dict.fromkeys(columns) | row
    except csv.Error as error:
        raise ValueError(f"{table} is no table: {error}") from error


def _csv_rows(file: Iterable[str], table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(file, delimiter="\t" if table.suffix.lower() == ".tsv" else ",")
    for row in reader:
        yield reader.line_num, row


def _json_rows(file: Iterable[str], table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(file, start=1):
        if text.strip():
            row = parsed(text, f"{table}, line {line}")
            if not isinstance(row, dict):
                raise ValueError(f"{table}, line {line} is a {type(row).__name__}; it must be an object")
            yield line, row


def _dataset(source: CaptionedDataset) -> Any:  # noqa: ANN401  (a datasets.Dataset: the library is an extra)
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetGenerationError
    except ModuleNotFoundError as error:
        raise LookupError("datasets is not installed: pip install 'toklip-core[train]'") from error
    try:
        if source.files:
            return load_dataset("parquet", data_files=list(source.files), split="train")
        return load_dataset(source.name, source.subset, split=source.split)
    except (DatasetGenerationError, pa.ArrowInvalid) as error:
        reason = error.__cause__ or error
        raise ValueError(f"{source.name or ', '.join(source.files)} cannot be read: {reason}") from error
