"""Pictures in a column of a Parquet file, as the library `datasets` stores them or as bytes.

Rows whose pictures are equal byte for byte are merged into one picture with the captions of all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from threading import Lock

import pyarrow as pa
import pyarrow.parquet as pq

from toklip_core.files import (
    CAPTION_COLUMNS,
    captions_in,
    is_file,
    is_machine_error,
    named_error,
    nulls_in,
    one_line,
    warn_of_nulls,
    warn_of_several_captions,
)

#: Column of the picture. Without it, the only column that looks like those of the library `datasets` is used.
IMAGE_COLUMN = "image"


@dataclass(frozen=True, slots=True)
class ParquetRow:
    """Place of a picture in a Parquet file, and its captions; or the reason why it cannot be read."""

    column: str = IMAGE_COLUMN
    group: int = 0
    place: int = 0
    captions: tuple[str, ...] = ()
    problem: str = ""

    def data(self, path: Path) -> bytes:
        """Return the bytes of the picture; OSError if there are none, or if the file is damaged there."""
        facts = path.stat()
        column = _group(path, self.group, self.column, facts.st_mtime_ns, facts.st_size)
        return bytes_of_cell(column[self.place].as_py(), self.column)

    def caption(self, path: Path) -> str | None:
        """Return the first caption; None if there is none."""
        return next(iter(self.captions), None)


def parquet_pictures(path: Path, *, said: bool = True) -> Iterator[tuple[str, ParquetRow]]:
    """Yield (number of its first row, row) of each picture of a Parquet file, in order.

    If the file itself is damaged, a last row with the name "" says so.

    Args:
        path: the file.
        said: whether to log which rows are left out; only one of several processes that read the file should.
    """
    found: dict[bytes, ParquetRow] = {}
    names: dict[bytes, int] = {}
    captions: dict[bytes, list[str]] = {}
    broken, row, nulls = "", 0, 0
    try:
        with pq.ParquetFile(path) as file:
            image, caption = _columns(path, file.schema_arrow)
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=[image, *([caption] if caption else [])])
                texts = table.column(caption).to_pylist() if caption else [None] * len(table)
                for place, (cell, text) in enumerate(zip(table.column(image), texts, strict=True)):
                    key = _digest(cell.as_py(), row)
                    found.setdefault(key, ParquetRow(image, group, place))
                    names.setdefault(key, row)
                    captions.setdefault(key, []).extend(captions_in(text, f"{path}, row {row}: {caption!r}"))
                    nulls += nulls_in(text)
                    row += 1
    except (pa.ArrowException, LookupError, OSError, ValueError) as error:
        if is_machine_error(error):
            raise named_error(error, str(path)) from error
        broken = one_line(error, longest=200)
    if said:
        warn_of_nulls(nulls, str(path))
        warn_of_several_captions(sum(len(texts) > 1 for texts in captions.values()), str(path))
    for key, member in found.items():
        yield f"{names[key]:08d}", ParquetRow(image, member.group, member.place, tuple(captions[key]))
    if broken:
        yield "", ParquetRow(problem=f"no Parquet file of pictures, or a damaged one: {broken}")


def data_and_path(value: object) -> tuple[bytes | None, str | None]:
    """Return (bytes, path) of a cell in a column of pictures; without bytes it may have the path of a file."""
    facts = value if isinstance(value, dict) else {"bytes": value}
    data, path = facts.get("bytes"), facts.get("path")
    return (data if isinstance(data, bytes) else None), (path if isinstance(path, str) and data is None else None)


def bytes_of_cell(value: object, column: str) -> bytes:
    """Return the bytes of the picture in a cell of a column; OSError if there are none."""
    data, beside = data_and_path(value)
    if data is not None:
        return data
    if beside is None or not is_file(beside):
        raise OSError(f"{column!r} holds no picture" if beside is None else f"there is no file {beside!r}")
    return Path(beside).read_bytes()


def is_text(kind: pa.DataType) -> bool:
    """Return whether an Arrow type is one of texts or of lists of texts."""
    if is_list(kind):
        kind = kind.value_type
    if pa.types.is_dictionary(kind):  # as pandas and Polars write categories
        kind = kind.value_type
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def is_list(kind: pa.DataType) -> bool:
    """Return whether an Arrow type is one of lists."""
    of = pa.types
    tests = (of.is_list, of.is_large_list, of.is_fixed_size_list, of.is_list_view, of.is_large_list_view)
    return any(test(kind) for test in tests)


def _columns(path: Path, schema: pa.Schema) -> tuple[str, str | None]:
    """Return the names of the columns of pictures and of captions."""
    images = [IMAGE_COLUMN] if IMAGE_COLUMN in schema.names else [field.name for field in schema if _is_stored(field)]
    if len(images) != 1:
        has = one_line(", ".join(schema.names), longest=120)
        raise ValueError(f"{path} has no column {IMAGE_COLUMN!r}; its columns: {has}")
    for name in (images[0], *CAPTION_COLUMNS):
        if schema.names.count(name) > 1:
            raise ValueError(f"{path} has the column {name!r} twice; give one of them another name")
    texts = (name for name in CAPTION_COLUMNS if name in schema.names and is_text(schema.field(name).type))
    return images[0], next(texts, None)


def _is_stored(field: pa.Field) -> bool:
    """Return whether a column has the layout of pictures in the library `datasets`."""
    names = {inner.name for inner in field.type} if pa.types.is_struct(field.type) else set()
    return {"bytes", "path"} <= names


def _digest(cell: object, row: int) -> bytes:
    data, path = data_and_path(cell)
    if data is None:
        return f"path {path}".encode() if path is not None else f"row {row}".encode()
    return blake2b(data, digest_size=16).digest()


#: Held while a row group is read.
_READING = Lock()


def _group(path: Path, group: int, column: str, *changed: int) -> pa.ChunkedArray:
    """Return a column of a row group. The last one is cached until the file changes, as pictures are read in order.

    Threads that want one at the same time, as those of an evaluation do, wait for the one that reads it.
    """
    with _READING:
        return _read_group(path, group, column, *changed)


@lru_cache(maxsize=1)
def _read_group(path: Path, group: int, column: str, *changed: int) -> pa.ChunkedArray:
    try:
        with pq.ParquetFile(path) as file:
            return file.read_row_group(group, columns=[column]).column(column)
    except (pa.ArrowException, LookupError, OSError) as error:
        if is_machine_error(error):
            raise named_error(error, str(path)) from error
        if isinstance(error, OSError):
            raise
        raise OSError(f"row group {group} of {path} is damaged: {one_line(error, longest=120)}") from error
