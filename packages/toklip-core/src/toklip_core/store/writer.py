"""Writer of a store: writes parts under other names, renames them, and removes leftovers of killed processes."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from torch import Tensor

from toklip_core.files import replacing
from toklip_core.store.format import (
    CHECKSUMS_KEY,
    CROPS,
    IDS,
    UNREADABLE,
    StoreInfo,
    UnreadablePicture,
    checksums,
    leftover_parts,
    lies_beside,
    part_paths,
    part_schema,
    places,
    rank_of_part,
    reported,
)
from toklip_core.store.tables import row_table

_log = logging.getLogger(__name__)

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

# A row is read with its whole group, which is half a megabyte for 1,000 pictures of 256 ids. Groups of 10,000 save 7 %.
_ROWS_PER_GROUP = 1000

# With tokens, 1,000 rows would be 600 MB.
_BYTES_PER_GROUP = 2**25

# Largest codebook that a group of rows lists. Measured in bytes per random id, with a dictionary and without: 1.91 and
# 2.38 at 2^14, 2.19 and 2.46 at 2^15, 2.63 and 2.49 at 2^16, 4.08 and 2.88 at 2^18, 6.03 and 3.84 at 2^28.
_LARGEST_DICTIONARY = 2**15


class PartWriter:
    """Writer of one rank's parts. Rows wait in memory until :meth:`flush` writes them as a complete part."""

    def __init__(self, path: Path, info: StoreInfo, *, rank: int = 0, world_size: int = 1) -> None:
        self._path, self._info, self._rank = path, info, rank
        path.mkdir(parents=True, exist_ok=True)
        for leftover in leftover_parts(path):
            if _tidied_by(rank_of_part(leftover), rank, world_size):
                leftover.unlink()
        self._beside = lies_beside(path, rank)
        numbers = (int(part.stem.split("-")[2]) for part in part_paths(path) if rank_of_part(part) == rank)
        self._number = max(numbers, default=0) + 1
        self._schema = part_schema(info)
        self._empty()

    def __len__(self) -> int:
        """Return the number of waiting rows."""
        return sum(table.num_rows for table in self._tables)

    @property
    def nbytes(self) -> int:
        """Number of bytes of the waiting ids and features."""
        return self._nbytes

    def add(
        self,
        keys: Sequence[str],
        ids: Tensor,
        captions: Sequence[str | None],
        features: Mapping[str, Tensor] = MappingProxyType({}),
        crops: Tensor | None = None,
    ) -> None:
        """Add rows to those that wait; see :func:`toklip_core.store.tables.row_table`."""
        self.add_table(row_table(self._info, keys, ids, captions, features, crops))

    def add_table(self, table: pa.Table) -> None:
        """Add rows with the columns of a part to those that wait."""
        assert table.schema.equals(self._schema)
        if table.num_rows:
            self._tables.append(table)
            self._nbytes += sum(pc.list_flatten(c).nbytes for c in table.columns if pa.types.is_list(c.type))

    def flush(self) -> None:
        """Write the waiting rows as one complete part; OSError if the disk is full."""
        if not self._tables:
            return
        table = pa.concat_tables(self._tables).combine_chunks()
        name = f"part-{self._rank:05d}-{self._number:06d}.parquet"
        beside, inside = places(self._path, f".{name}.tmp")
        _write_whole(beside if self._beside else inside, self._path / name, table, _with_dictionary(self._info))
        self._number += 1
        self._empty()

    def _empty(self) -> None:
        self._tables: list[pa.Table] = []
        self._nbytes = 0


class UnreadableLog:
    """Report of one rank's unreadable pictures; each gets a line immediately, unless that line is there already.

    Earlier lines stay, because the pictures of earlier calls may come from other inputs.

    Args:
        path: folder of the store.
        rank: number of this process.
    """

    def __init__(self, path: Path, *, rank: int = 0) -> None:
        beside, inside = places(path, UNREADABLE)
        self.path = (beside if lies_beside(path, rank) else inside) / f"rank-{rank:05d}.jsonl"
        self._written = True
        try:
            self._reported = set(reported(path))
        except (OSError, ValueError) as error:  # as in `add`: the readable pictures matter more
            _log.warning("earlier reports of unreadable pictures cannot be read: %s", error)
            self._reported = set()

    def add(self, row: UnreadablePicture) -> None:
        """Write a line. If that fails, log it once and go on, because the readable pictures matter more."""
        if row in self._reported:
            return
        self._reported.add(row)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    if file.read() != b"\n":  # a kill has cut the last line
                        file.write(b"\n")
                file.write(json.dumps(row._asdict()).encode() + b"\n")
        except OSError as error:
            if self._written:
                _log.warning("the list of unreadable pictures cannot be written: %s", error)
            self._written = False


@contextmanager
def fullness_explained(path: Path) -> Iterator[None]:
    """Turn errors of a full disk, a quota or a file size limit inside into an OSError with advice."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        message = f"no room to write in {path} ({error.strerror}); what is complete is kept: make room, run it again"
        raise OSError(message) from error


def _with_dictionary(info: StoreInfo) -> list[str]:
    """Return the paths in Parquet of the columns with a dictionary; for ids it lists the codebook."""
    levels = [
        f"{column}.list.element"
        for name in (IDS, CROPS)
        for column, size in zip(info.level_columns(name), info.codebook_sizes, strict=True)
        if size <= _LARGEST_DICTIONARY
    ]
    return ["key", "height", "width", "caption", *levels]


def _write_whole(beside: Path, path: Path, table: pa.Table, with_dictionary: list[str]) -> None:
    """Write a table as Parquet to the path ``beside``, then rename it to ``path``, where no part may be."""
    rows = min(_ROWS_PER_GROUP, max(1, _BYTES_PER_GROUP * table.num_rows // table.nbytes))
    metadata = {**table.schema.metadata, CHECKSUMS_KEY: checksums(table, rows)}
    with replacing(path, beside=beside, to_disk=True, new=True) as beside, beside.open("wb") as file:
        pq.write_table(
            table.replace_schema_metadata(metadata),
            file,
            compression="zstd",
            row_group_size=rows,
            use_dictionary=with_dictionary,
            write_page_checksum=True,
        )


def _tidied_by(owner: int, rank: int, world_size: int) -> bool:
    """Return whether ``rank`` removes leftovers of ``owner``: its own, and for rank 0 those of ranks that are gone."""
    return owner == rank or (rank == 0 and owner >= world_size)
