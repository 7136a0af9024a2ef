"""Readers of captioned pictures in files and tars, tables, and data sets, by number.

Readers keep what they know about the pictures in arrays, which forked workers share. Python objects would be copied
page by page, because counting references writes to them.
"""

from __future__ import annotations

import io
import logging
import os
from array import array
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from toklip_core.captioned.settings import CaptionedDataset, CaptionedPictures, CaptionedTable
from toklip_core.files import (
    captions_by_picture,
    captions_in,
    is_file,
    is_machine_error,
    nulls_in,
    one_line,
    refuse_special,
    warn_of_nulls,
)
from toklip_core.pictures import (
    PICTURE_SUFFIXES,
    Entry,
    ParquetRow,
    PictureError,
    ScenePlace,
    Span,
    TarMember,
    data_and_path,
    entries,
    find_pictures,
    is_list,
    is_text,
    open_picture,
)

PictureAndCaptions = tuple[Image.Image, Sequence[str]]

# Number of first bytes by which pictures are compared before all of their bytes are.
_COMPARED = 4096

# Number of a table's pictures that must be missing before its root counts as wrong.
_LOOKED_FOR = 100

_log = logging.getLogger(__name__)


class CaptionReader(Protocol):
    """Pictures with captions, by number. Readers can be pickled, for workers."""

    def __len__(self) -> int:
        """Return the number of pictures."""

    def __getitem__(self, number: int) -> PictureAndCaptions:
        """Return an RGB picture and its captions, one or more; PictureError if either is missing or cannot be read."""

    def place(self, number: int) -> str:
        """Return the place of a picture, for messages."""

    def all_captions(self) -> Iterator[str] | None:
        """Yield every caption at least once; None if that would mean reading every file."""


class PictureFiles:
    """Files and members of tars with a .txt or .json beside them, and files listed in an imagefolder's metadata.

    Finding the members of a tar takes 0.1 ms per picture, to read its headers, and 64 bytes of memory.

    Raises:
        FileNotFoundError: an input is missing, or there is no picture.
        ValueError: no picture has a caption.
    """

    def __init__(self, source: CaptionedPictures) -> None:
        paths: dict[bytes, int] = {}
        rows = array("q")
        found, first = 0, ""
        for entry in entries(find_pictures(source.inputs, max_pixels=source.max_pixels)):
            found += 1
            member = entry.member
            if isinstance(member, ParquetRow):
                raise ValueError(f"{entry.path} is read with kind = 'dataset', which knows its columns")
            if isinstance(member, ScenePlace):
                raise ValueError(f"{entry.path} is read with kind = 'scenes', which has new ones in every epoch")
            if problem := _why_left_out(entry):
                first = first or f"{entry.key}: {problem}"
                continue
            member = member or TarMember()
            spans = (member.span, member.text or _ABSENT, member.facts or _ABSENT)
            files = (entry.path, entry.metadata)
            places = [-1 if file is None else paths.setdefault(os.fsencode(file), len(paths)) for file in files]
            rows.extend((*places, int(entry.member is not None), *(number for span in spans for number in span)))
        if not rows:
            raise ValueError(
                f"none of {found} pictures in {', '.join(source.inputs)} has a caption; the first is {first}"
            )
        self._paths = pa.array(list(paths), pa.large_binary())
        self._rows = np.frombuffer(rows, np.int64).reshape(-1, 9)
        self._max_pixels = source.max_pixels

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> PictureAndCaptions:
        entry = self._entry(number)
        captions = entry.captions()
        if not captions:
            raise PictureError("no caption, or an empty one")
        return entry.image(), captions

    def place(self, number: int) -> str:
        """Return the file, and the place in it."""
        entry = self._entry(number)
        member = entry.member
        return f"{entry.path}, byte {member.span.offset}" if isinstance(member, TarMember) else str(entry.path)

    def all_captions(self) -> None:
        """Return None, since each caption is a file."""

    def _entry(self, number: int) -> Entry:
        file, table, is_member, *numbers = self._rows[number].tolist()
        path = Path(os.fsdecode(self._paths[file].as_py()))
        if not is_member:
            metadata = None if table < 0 else Path(os.fsdecode(self._paths[table].as_py()))
            return Entry(path.name, path, metadata=metadata, max_pixels=self._max_pixels)
        picture, text, facts = (Span(*numbers[i : i + 2]) for i in (0, 2, 4))
        member = TarMember(picture, _present(text), _present(facts))
        return Entry(path.name, path, member, max_pixels=self._max_pixels)


class PictureTable:
    """Pictures with captions in a CSV, TSV or JSONL file; rows that name the same picture are merged.

    Raises:
        FileNotFoundError: the table is missing, or its pictures are.
        ValueError: the file has another suffix, a column is missing, or no row has a caption.
    """

    def __init__(self, source: CaptionedTable) -> None:
        root = source.table.parent if source.root is None else source.root
        found = captions_by_picture(
            source.table, root, image=source.image, caption=source.caption, suffixes=PICTURE_SUFFIXES
        )
        paths = list(found)
        if not any(Path(path).is_file() for path in paths[:_LOOKED_FOR]):
            raise FileNotFoundError(
                f"the pictures of {source.table} are not where it says, the first is {paths[0]}; set root"
            )
        self._paths = pa.array(paths, pa.large_string())
        self._max_pixels = source.max_pixels
        self._captions = pa.array(found.values(), pa.large_list(pa.large_string()))

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> PictureAndCaptions:
        path = Path(self.place(number))
        return Entry(path.name, path, max_pixels=self._max_pixels).image(), self._captions[number].as_py()

    def place(self, number: int) -> str:
        """Return the picture's path."""
        return str(self._paths[number].as_py())

    def captions(self, number: int) -> list[str]:
        """Return the captions of a picture without reading the picture."""
        return list(self._captions[number].as_py())

    def all_captions(self) -> Iterator[str]:
        """Yield each caption once."""
        return (caption.as_py() for caption in pc.unique(self._captions.flatten()))


class PictureDataset:
    """Pictures of Parquet files or of a data set of the hub, memory-mapped by the library `datasets`.

    Rows whose pictures are equal byte for byte are merged into one picture with all their captions. Rows without a
    caption are left out; a warning counts them.

    Raises:
        LookupError: the library is not installed.
        FileNotFoundError: there are no such files, or no such data set.
        ValueError: a column is missing, no row has a caption, or the files are damaged.
        OSError: the hub cannot be reached.
    """

    def __init__(self, source: CaptionedDataset) -> None:
        self._name = source.name or ", ".join(source.files)
        self._image, self._caption = source.image, source.caption
        self._max_pixels = source.max_pixels
        rows = _dataset(source)
        if missing := {source.image, source.caption} - set(rows.column_names):
            raise ValueError(
                f"{self._name} has no column {sorted(missing)[0]!r} (image and caption name them); its columns: "
                f"{one_line(', '.join(rows.column_names), longest=120)}"
            )
        # As Arrow, because the library would decode pictures without limiting their size or turning them upright.
        self._rows = rows.select_columns([source.image, source.caption]).with_format("arrow")
        self._texts = rows.select_columns([source.caption]).with_format("arrow")
        if not len(rows):
            raise ValueError(f"{self._name} has no rows")
        captioned = self._captioned_rows(self._texts.data.column(source.caption))
        first = _first_rows(rows.select_columns([source.image]).data.column(source.image))[captioned]
        by_picture = np.argsort(first, kind="stable")
        #: Rows of each picture, one picture after another, and the begin of each picture's rows.
        self._order = captioned[by_picture]
        self._starts = np.unique(first[by_picture], return_index=True)[1]

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, number: int) -> PictureAndCaptions:
        rows = self._rows_of(number)
        cells = self._texts[rows][self._caption].to_pylist()
        captions = [text for row, cell in zip(rows, cells, strict=True) for text in captions_in(cell, f"row {row}")]
        picture = self._picture(self._rows[rows[0]][self._image].to_pylist()[0])
        return open_picture(picture, max_pixels=self._max_pixels), captions

    def _rows_of(self, number: int) -> list[int]:
        number = range(len(self))[number]
        end = self._starts[number + 1] if number + 1 < len(self) else None
        rows: list[int] = self._order[self._starts[number] : end].tolist()
        return rows

    def _captioned_rows(self, captions: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the rows with a caption, log how many have none, and refuse values that are not captions."""
        kind = captions.type.value_type if is_list(captions.type) else captions.type
        if not (is_text(captions.type) or pa.types.is_null(kind)):
            raise ValueError(
                f"{self._name}: the column {self._caption!r} is {captions.type}; it must be a text, or a list of texts"
            )
        if is_list(captions.type):
            nulls, first = _first_null(captions)
            warn_of_nulls(nulls, f"{self._name}, row {first}")
        # One chunk after another, because the texts may not fit into memory.
        parts = [self._has_caption(chunk) for chunk in captions.chunks]
        found = np.concatenate(parts) if parts else np.zeros(0, bool)
        rows = np.flatnonzero(found)
        if not len(rows):
            raise ValueError(f"none of {len(found)} rows of {self._name} has a caption in {self._caption!r}")
        if len(rows) < len(found):
            _log.warning("%d of %d rows of %s have no caption", len(found) - len(rows), len(found), self._name)
        return rows

    def _has_caption(self, cells: pa.Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Return whether each cell has a caption that is not empty."""
        if pa.types.is_string(cells.type) or pa.types.is_large_string(cells.type):  # fast, for millions of rows
            found = pc.fill_null(pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(cells)), 0), False)
            return np.asarray(found.to_numpy(zero_copy_only=False), bool)
        return np.array([bool(captions_in(cell, self._name)) for cell in cells.to_pylist()], bool)

    def place(self, number: int) -> str:
        """Return the data set, and the row."""
        return f"{self._name}, row {self._rows_of(number)[0]}"

    def all_captions(self) -> None:
        """Return None, since there may be any number of captions."""

    def _picture(self, value: object) -> io.BytesIO | str:
        data, path = data_and_path(value)
        if data is not None:
            return io.BytesIO(data)
        if path is not None:
            return path
        raise PictureError(f"{self._image!r} is a {type(value).__name__}, not a picture as the library stores it")


_ABSENT = Span(-1, -1)


def _present(span: Span) -> Span | None:
    return None if span == _ABSENT else span


def _first_rows(pictures: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the first row (N,) with the same picture, for each of N rows of a column of pictures.

    Rows are compared by size and first bytes, and those that agree by all of their bytes.
    """
    short = np.array([key for chunk in pictures.chunks for key in _short_keys(chunk)], np.int64)
    _, place, count = np.unique(short, return_inverse=True, return_counts=True)
    first = np.arange(len(short))
    seen: dict[object, int] = {}
    for row in np.flatnonzero(count[place] > 1).tolist():
        data, path = data_and_path(pictures[row].as_py())
        if data is not None:
            first[row] = seen.setdefault(blake2b(data, digest_size=16).digest(), row)
        elif path is not None:
            first[row] = seen.setdefault(path, row)
    return first


def _short_keys(pictures: pa.Array) -> list[int]:
    """Return a number for each picture, equal for equal pictures, from its size and first bytes."""
    if not pa.types.is_struct(pictures.type):
        pictures = pa.StructArray.from_arrays([pictures], ["bytes"])
    known = {field.name for field in pictures.type}
    data, path = (pc.struct_field(pictures, name) if name in known else None for name in ("bytes", "path"))
    keys: list[object] = [None] * len(pictures)
    if path is not None:
        keys = path.to_pylist()
    if data is not None and any(test(data.type) for test in (pa.types.is_binary, pa.types.is_large_binary)):
        sizes, begins = pc.binary_length(data).to_pylist(), pc.binary_slice(data, 0, _COMPARED).to_pylist()
        keys = [key if size is None else (size, begin) for key, size, begin in zip(keys, sizes, begins, strict=True)]
    return [hash(key) for key in keys]


def _first_null(captions: pa.ChunkedArray) -> tuple[int, int]:
    """Return the number of nulls in lists of captions, and the first row that has one."""
    nulls, first, start = 0, -1, 0
    for chunk in captions.chunks:
        found = chunk.flatten().null_count
        if found and not nulls:
            first = next(start + row for row, cell in enumerate(chunk.to_pylist()) if nulls_in(cell))
        nulls, start = nulls + found, start + len(chunk)
    return nulls, first


def _why_left_out(entry: Entry) -> str:
    """Return why a picture cannot be used, as far as that is known without opening it, else an empty text."""
    member = entry.member
    assert not isinstance(member, ParquetRow | ScenePlace)
    if member is None:
        beside = any(is_file(entry.path.with_suffix(suffix)) for suffix in (".txt", ".json"))
        return "" if beside or entry.listed_captions() else "no caption"
    if member.problem:
        _log.warning("%s is left out: %s", entry.key, member.problem)
        return member.problem
    return "" if member.text or member.facts else "no caption"


def _dataset(source: CaptionedDataset) -> Any:  # noqa: ANN401  (a datasets.Dataset: the library is an extra)
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetGenerationError
    except ModuleNotFoundError as error:
        raise LookupError("datasets is not installed: pip install 'toklip-core[train]'") from error
    for pattern in source.files:
        refuse_special(pattern)
    try:
        if source.files:
            return load_dataset("parquet", data_files=list(source.files), split="train")
        return load_dataset(source.name, source.subset, split=source.split)
    except (DatasetGenerationError, pa.ArrowInvalid) as error:
        reason = error.__cause__ or error
        if is_machine_error(reason):
            raise reason from None
        raise ValueError(f"{source.name or ', '.join(source.files)} cannot be read: {reason}") from error
    except RuntimeError as error:
        if source.files or is_machine_error(error):
            raise
        # It has a loading script, which no library runs any more.
        raise ValueError(f"{source.name} cannot be read: {error}; give its Parquet files as `files`") from error
