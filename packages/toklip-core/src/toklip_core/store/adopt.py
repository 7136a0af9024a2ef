"""Rows that another program wrote to Parquet, from a BatchEncoder, into a token store.

    Parquet files -checked, in the types of a store-> rows -> parts
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from toklip_core.files import is_machine_error, named_error, one_line
from toklip_core.pictures import is_list
from toklip_core.store.format import StoreInfo, UnreadablePicture, part_schema, refuse_other_files
from toklip_core.store.locks import writing
from toklip_core.store.part_reader import RowGroup
from toklip_core.store.writer import PartWriter, UnreadableLog, fullness_explained

_PART_ROWS = 10_000
_PART_BYTES = 2**29
_GROUP_ROWS = 1000


def adopt_rows(folder: Path, store: Path, info: StoreInfo, held: Callable[[], Container[str]]) -> None:
    """Write the rows of Parquet files into a store; see :meth:`toklip_core.store.TokenStore.adopt`.

    Args:
        folder: folder of the files.
        store: folder of the store.
        info: metadata of the store.
        held: function that returns the keys of the store; rows with these are skipped.
    """
    refuse_other_files(store)
    paths = _files(folder, store)
    _refuse_repeated_keys(paths)
    with fullness_explained(store), writing(store, 0, 1):
        done = held()
        writer, log = PartWriter(store, info), UnreadableLog(store)
        for path in paths:
            for start, table in _groups(path, [*part_schema(info).names, "error"]):
                good = _without_error(table)
                for row in table.filter(pc.invert(good)).to_pylist():
                    log.add(UnreadablePicture(row["key"], str(path), row["error"]))
                if not pc.any(good).as_py():  # then its columns may be of any type, such as Arrow's null
                    continue
                rows = _checked(path, np.flatnonzero(good) + start, table.filter(good), info)
                new = [key not in done for key in rows["key"].to_pylist()]
                writer.add_table(rows.filter(pa.array(new, pa.bool_())))
                if len(writer) >= _PART_ROWS or writer.nbytes >= _PART_BYTES:
                    writer.flush()
        writer.flush()


def _files(folder: Path, store: Path) -> list[Path]:
    if store.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"got {store} as the store and {folder} as the folder of rows; name a store outside of it")
    # Names that begin with these are what Spark and others are still writing, or have given up.
    paths = [
        path
        for path in sorted(folder.rglob("*.parquet"))
        if path.is_file() and not any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
    ]
    if not paths:
        raise FileNotFoundError(f"no Parquet file in {folder}; name the folder that the rows were written to")
    return paths


def _groups(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
    """Yield (number of the first row, rows) of the groups of a file, with those of the columns that it has."""
    start = 0
    try:
        with pq.ParquetFile(path) as file:
            named = [name for name in columns if name in file.schema_arrow.names]
            if "key" not in named:
                raise _unfit(path, f"it has no 'key'; its columns: {', '.join(file.schema_arrow.names)}")
            _refuse_no_text(path, file.schema_arrow.field("key").type)
            for batch in file.iter_batches(_GROUP_ROWS, columns=named):
                for row in np.flatnonzero(batch["key"].is_null())[:1]:
                    raise _unfit(path, f"row {start + row}: it has no 'key'")
                yield start, pa.Table.from_batches([batch])
                start += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        if is_machine_error(error):
            raise named_error(error, str(path)) from error
        raise _unfit(path, one_line(error, longest=120)) from error


def _refuse_no_text(path: Path, kind: pa.DataType) -> None:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise _unfit(path, f"'key' is {kind}, not string")


def _without_error(table: pa.Table) -> pa.Array:
    if "error" not in table.column_names:
        return pa.array([True] * table.num_rows, pa.bool_())
    return table["error"].is_null().combine_chunks()


def _refuse_repeated_keys(paths: Sequence[Path]) -> None:
    """Raise ValueError if two rows without an error have one key; memory holds 8 to 12 bytes per row."""

    def keys() -> Iterator[tuple[Path, str, int]]:
        for path in paths:
            for _, table in _groups(path, ["key", "error"]):
                for key in table.filter(_without_error(table))["key"].to_pylist():
                    yield path, key, int.from_bytes(blake2b(key.encode(), digest_size=8).digest())

    digests = np.fromiter((digest for *_, digest in keys()), np.uint64)
    digests.sort()
    repeated, seen = set(digests[1:][digests[1:] == digests[:-1]].tolist()), set[str]()
    for path, key, digest in keys() if repeated else ():
        if key in seen:
            raise _unfit(path, f"the key {key!r} is there twice, as when two jobs wrote into one folder")
        if digest in repeated:
            seen.add(key)


def _checked(path: Path, numbers: np.ndarray[Any, Any], table: pa.Table, info: StoreInfo) -> pa.Table:
    """Return rows with the columns of a part; ValueError, with the first row at fault, unless all values fit."""
    schema = part_schema(info)
    if "caption" not in table.column_names:
        table = table.append_column("caption", pa.nulls(table.num_rows, pa.string()))
    columns: dict[str, pa.Array] = {}
    for field in schema:
        if field.name not in table.column_names:
            raise _unfit(path, f"it has no {field.name!r}; its columns: {', '.join(table.column_names)}")
        try:
            columns[field.name] = _column(table[field.name].combine_chunks(), field.type)
        except (pa.ArrowException, TypeError) as error:
            if is_machine_error(error):
                raise
            kind = table.schema.field(field.name).type
            raise _unfit(path, f"{field.name!r} is {kind}, not {field.type}: {one_line(error, longest=80)}") from error
    RowGroup(path, numbers, pa.table(columns), info, _unfit).refuse_wrong()
    return pa.table({name: column.cast(schema.field(name).type) for name, column in columns.items()}, schema=schema)


def _column(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return a column in the type of a part, but with ids as int64, so that wrong ones can be named."""
    if not is_list(kind):
        return column.cast(kind)
    if not is_list(column.type):
        raise TypeError("no lists")
    numbers = column.flatten()
    if pa.types.is_float16(kind.value_type):  # by numpy, because older releases of pyarrow have no such cast
        with np.errstate(over="ignore"):  # infinity is refused afterwards
            numbers = pa.array(numbers.to_numpy(zero_copy_only=False).astype(np.float16))
    else:
        numbers = numbers.cast(pa.int64())
    lengths = pc.list_value_length(column).fill_null(0).to_numpy()
    offsets = pa.array(np.concatenate([[0], lengths.cumsum()]), pa.int32())
    return pa.ListArray.from_arrays(offsets, numbers, mask=column.is_null())


def _unfit(path: Path, what: str) -> ValueError:
    return ValueError(f"{path} cannot be adopted: {what}; encode its pictures again, or take it out of the folder")
