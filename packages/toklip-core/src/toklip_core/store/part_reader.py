"""Reader of one part of a token store, which refuses damaged parts in one line.

Opening a part checks its name, info, columns and list of checksums. Reading a group of its rows checks their checksums,
and then every value of every column that is read.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from toklip_core.files import is_file, is_machine_error, named_error
from toklip_core.pictures import VIEWS
from toklip_core.store.format import (
    CHECKSUMS_KEY,
    CROPS,
    FORMAT,
    IDS,
    METADATA_KEY,
    StoreInfo,
    column_crc32,
    part_schema,
)

_LONGEST_REASON = 120
_LONGEST_KEY = 60
_ABSENT = "is not part of a token store: its metadata has no"


class PartContents(NamedTuple):
    """Contents of a part, from its metadata."""

    info: StoreInfo
    #: Number of rows of each group, which is read at once.
    group_rows: tuple[int, ...]
    #: Checksums of the columns as the part lists them; the size of the file if it lists none.
    checksums: str


def part_contents(path: Path) -> PartContents:
    """Return the contents of a part from its metadata.

    Raises:
        ValueError: the file is damaged, is not part of a token store, or was written by another version.
        OSError: it cannot be read.
    """
    with _opened(path) as file:
        info, checksums = _described(path, file)
        listed = path.stat().st_size if checksums is None else checksums
        return PartContents(info, _rows(file), json.dumps(listed, sort_keys=True))


def read_group(path: Path, group: int, columns: Sequence[str]) -> pa.Table:
    """Return columns of a group of rows, each in one chunk, with all values checked against the store's info.

    Raises:
        ValueError: the group is damaged; the message names the part, and the row or the group's rows.
        OSError: the part cannot be read.
    """
    with _opened(path) as file:
        info, checksums = _described(path, file)
        rows = _rows(file)
        if group >= len(rows):
            raise _damaged(path, "it was exchanged for another while it was read")
        start = sum(rows[:group])
        where = f"rows {start} to {start + rows[group] - 1}"
        # Height and width are needed to check the ids.
        wanted = list(dict.fromkeys([*columns, "height", "width"])) if set(columns) - {"key", "caption"} else columns
        with _named(path, where):
            table = file.read_row_group(group, columns=list(wanted)).combine_chunks()
            if table.num_rows != rows[group]:
                raise _damaged(path, f"{where} are {table.num_rows} rows")
            table.validate(full=True)
            # First, because it names the row.
            RowGroup(path, range(start, start + rows[group]), table, info).refuse_wrong()
            for name in table.column_names:
                if checksums is not None and column_crc32(table[name]) != checksums[name][group]:
                    raise _damaged(path, f"{where} of the column {name!r} have another checksum than when written")
        return table


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(f"{path} is damaged: {what}; delete it, and `toklip encode` makes its rows again")


class RowGroup(NamedTuple):
    """A group of rows of a file, each column in one chunk."""

    path: Path
    #: Number of each row in the file.
    numbers: Sequence[int] | np.ndarray[Any, Any]
    table: pa.Table
    info: StoreInfo
    #: Error for a file and what is wrong with it.
    refusal: Callable[[Path, str], ValueError] = _damaged

    def refuse_wrong(self) -> None:
        """Raise ValueError, with the first row at fault, unless all values fit the info."""
        if not self.table.num_rows:
            return
        for name in self.table.column_names:
            if name != "caption" and self.table[name].null_count:
                self._refuse(self.table[name].is_null(), f"it has no {name!r}")
        if "height" not in self.table.column_names:
            return
        height, width = self.info.grid
        sides = [self.table[name].to_numpy() for name in ("height", "width")]
        for row in np.flatnonzero((sides[0] != height) | (sides[1] != width))[:1]:
            got, pixels = f"{sides[0][row]} x {sides[1][row]}", self.info.image_size
            self._refuse_row(row, f"its grid is {got}, but one of {pixels} px is {height} x {width}")
        for name, views in ((IDS, 1), (CROPS, VIEWS)):
            for column, size in zip(self.info.level_columns(name), self.info.codebook_sizes, strict=True):
                if column in self.table.column_names:
                    self._refuse_wrong_ids(column, size, views * height * width)
        for name, info in self.info.features.items():
            if name in self.table.column_names:
                self._refuse_wrong_features(name, info.width * info.count)

    def _refuse_wrong_ids(self, name: str, size: int, count: int) -> None:
        ids = self._numbers(name, count)
        for place in np.flatnonzero((ids < 0) | (ids >= size))[:1]:  # other programs may have signed ids
            self._refuse_row(place // count, f"{ids[place]} is in {name!r}, but ids are from 0 to {size - 1}")

    def _refuse_wrong_features(self, name: str, count: int) -> None:
        halves = self._numbers(name, count).view(np.uint16)
        for place in np.flatnonzero((halves & 0x7C00) == 0x7C00)[:1]:  # all exponent bits set: infinity or NaN
            self._refuse_row(place // count, f"a number of {name!r} is not finite")

    def _numbers(self, name: str, count: int) -> np.ndarray[Any, Any]:
        """Return the numbers of all lists, one list after another."""
        lists = self.table[name].chunk(0)
        lengths = pc.list_value_length(lists).to_numpy()
        for row in np.flatnonzero(lengths != count)[:1]:
            self._refuse_row(row, f"{name!r} has {lengths[row]} numbers, not {count}")
        numbers = lists.flatten()
        if numbers.null_count:
            self._refuse_row(np.flatnonzero(numbers.is_null())[0] // count, f"a number of {name!r} is missing")
        values: np.ndarray[Any, Any] = numbers.to_numpy()
        return values

    def _refuse(self, wrong: pa.ChunkedArray, what: str) -> None:
        self._refuse_row(np.flatnonzero(wrong)[0], what)

    def _refuse_row(self, row: Any, what: str) -> None:  # noqa: ANN401  (an integer of numpy, of any of its types)
        key = self.table["key"][int(row)].as_py() if "key" in self.table.column_names else None
        named = "" if key is None else f" ({quote_key(key)})"
        raise self.refusal(self.path, f"row {self.numbers[int(row)]}{named}: {what}")


def quote_key(key: str) -> str:
    """Return a key for messages, in quotes."""
    return repr(key if len(key) <= _LONGEST_KEY else f"{key[:_LONGEST_KEY]}...")


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    if not is_file(path):
        kind = "a folder" if path.is_dir() else "a link to nothing" if path.is_symlink() else "no file"
        raise ValueError(f"{path} is {kind}, but has the name of a part of a token store; move it out of there")
    with _named(path, "its footer"), pq.ParquetFile(path, page_checksum_verification=True) as file:
        yield file


@contextmanager
def _named(path: Path, where: str) -> Iterator[None]:
    """Add the path to errors that pyarrow raises inside; our own messages have it already."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        # Damage has no number of the system: that says why the file cannot be read now.
        if is_machine_error(error) or (isinstance(error, OSError) and error.errno is not None):
            raise named_error(error, str(path)) from error
        raise _damaged(path, f"{where}: {' '.join(str(error).split())[:_LONGEST_REASON]}") from error


def _described(path: Path, file: pq.ParquetFile) -> tuple[StoreInfo, dict[str, list[int]] | None]:
    """Return what a part's ids mean, and its checksums: column -> one of each group; None if it has none."""
    metadata = file.metadata.metadata or {}
    raw = metadata.get(METADATA_KEY)
    if raw is None:
        raise ValueError(f"{path} {_ABSENT} {METADATA_KEY.decode()!r}; take it out of the folder")
    info = _info(path, raw)  # first, because another format may have other checksums
    schema = file.schema_arrow
    for wanted in part_schema(info):
        count = len(schema.get_all_field_indices(wanted.name))
        if count != 1 or schema.field(wanted.name).type != wanted.type:
            got = f"is {schema.field(wanted.name).type}" if count == 1 else f"is there {count} times"
            raise _damaged(path, f"the column {wanted.name!r} {got}, not {wanted.type}")
    listed = metadata.get(CHECKSUMS_KEY)
    return info, None if listed is None else _checksums(path, listed, raw, file, info)


def _checksums(
    path: Path, listed: bytes, raw: bytes, file: pq.ParquetFile, info: StoreInfo
) -> dict[str, list[int]]:
    try:
        found = json.loads(listed)
        if found[METADATA_KEY.decode()] != zlib.crc32(raw) or tuple(found["rows"]) != _rows(file):
            raise _damaged(path, "its metadata has another checksum than when written")
        columns = found["columns"]
        complete = {*info.columns, *columns} == set(file.schema_arrow.names)
        if not complete or any(len(columns[name]) != file.num_row_groups for name in columns):
            raise _damaged(path, "its list of checksums is not of its columns")
    except (UnicodeDecodeError, json.JSONDecodeError, LookupError, TypeError) as error:
        raise _damaged(path, "its list of checksums cannot be read") from error
    return dict(columns)


def _info(path: Path, raw: bytes) -> StoreInfo:
    try:
        info = StoreInfo.model_validate_json(raw)
    except ValidationError as error:
        wrong = {entry["loc"]: entry for entry in error.errors()}
        if (entry := wrong.get(("format",))) is not None:
            raise _of_other_format(path, entry["input"]) from error
        place, entry = next(iter(wrong.items()))
        what = f"{'.'.join(map(str, place))}: {entry['msg']}" if place else entry["msg"]
        raise _damaged(path, f"what its ids mean cannot be read from its metadata: {what[:_LONGEST_REASON]}") from error
    if "format" not in info.model_fields_set:
        raise ValueError(
            f"{path} does not say of which format of token stores it is, as every version of toklip-core has it say; "
            "encode the pictures again, into another store"
        )
    return info


def _of_other_format(path: Path, got: object) -> ValueError:
    newer = isinstance(got, int) and got > FORMAT
    do = "update toklip-core" if newer else "encode the pictures again, into another store"
    return ValueError(
        f"{path} is of format {str(got)[:_LONGEST_KEY]} of token stores, but this version of toklip-core reads format "
        f"{FORMAT}; {do}"
    )


def _rows(file: pq.ParquetFile) -> tuple[int, ...]:
    return tuple(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))
