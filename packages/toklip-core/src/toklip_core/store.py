"""The token store: a folder of Parquet files with the ids of pictures, which other tools read as they are.

    part-00000-000001.parquet    rank, number: key, ids (flat, raster order), height, width (of the grid), caption
    __unreadable__/rank-00000.jsonl    what could not be read, and why

Every part carries, under ``toklip`` in its schema's metadata, what its ids mean (:class:`StoreInfo`). Parts are
written beside and renamed: what has the name of a part is complete.
"""

from __future__ import annotations

import errno
import json
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field, ValidationError
from torch import Tensor

from toklip_core.config import Config

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_METADATA_KEY = b"toklip"
#: The folder of the reports in a store.
UNREADABLE = "__unreadable__"  # pandas, DuckDB and datasets all pass over a folder of such a name

# A row is read with its whole group: 1,000 pictures of 256 ids are half a megabyte. Groups of 10,000 save 7 %.
_ROWS_PER_GROUP = 1000


class StoreInfo(Config):
    """What the ids of a store mean. Two encodes may share a store only if all of this is equal."""

    format: Literal[1] = Field(default=1, description="Version of the store's layout.")
    tokenizer: str = Field(description="Name in the registry.")
    weights_checksum: str = Field(description="SHA-256 of the tokenizer's weights.")
    codebook_size: int = Field(gt=0, description="K: ids lie in [0, K).")
    downsample_factor: int = Field(gt=0, description="f: one id covers f x f pixels.")
    image_size: int = Field(gt=0, description="Side of the square that was encoded.")
    resize: Literal["crop", "squash"] = Field(description="How a picture became that square.")
    dtype: Literal["float32", "bfloat16"] = Field(description="What the tokenizer computed in.")

    @property
    def ids_dtype(self) -> np.dtype[Any]:
        """The smallest unsigned integer type that holds every id."""
        return np.min_scalar_type(self.codebook_size - 1)


class TokenRow(NamedTuple):
    """One picture of a store: its key, its ids (h, w) int64, its caption if it has one."""

    key: str
    ids: Tensor
    caption: str | None


class Unreadable(NamedTuple):
    """A picture that could not be read: its key, the file it lies in, and why."""

    key: str
    source: str
    reason: str


class TokenStore:
    """Reads a token store. Rows are reached by number, lazily; memory is bounded by a few groups of 1,000 rows.

    It can be pickled, so that the workers of a DataLoader open the files themselves. A shuffled read
    is quick if it is shuffled in blocks: one row costs the reading of its group.

    Raises:
        FileNotFoundError: no store is at the path.
        ValueError: a part is damaged, is no part of a token store, or belongs to another tokenizer.
    """

    def __init__(self, path: Path | str, *, cached_groups: int = 4) -> None:
        self.path = Path(path)
        self._cached_groups = cached_groups
        self._parts = part_paths(self.path)
        if not self._parts:
            raise FileNotFoundError(
                f"no token store at {self.path}: it holds no part-*.parquet, which `toklip encode` writes"
            )
        self.info, rows = _info_and_groups(self._parts[0])
        self._groups = [(0, group) for group in range(len(rows))]
        for number, part in enumerate(self._parts[1:], start=1):
            info, more = _info_and_groups(part)
            refuse_other(info, self.info, what=str(part), store=self.path)
            self._groups += [(number, group) for group in range(len(more))]
            rows += more
        self._ends = list(accumulate(rows))
        self._cache: OrderedDict[int, pa.Table] = OrderedDict()

    def __len__(self) -> int:
        """Number of pictures."""
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> TokenRow:
        """Return row ``index``; negative ones count from the end."""
        wanted = index + len(self) if index < 0 else index
        if not 0 <= wanted < len(self):
            raise IndexError(f"row {index} of a store of {len(self)}")
        group = bisect_right(self._ends, wanted)
        start = self._ends[group - 1] if group else 0
        return self._row(self._group(group), wanted - start)

    def __iter__(self) -> Iterator[TokenRow]:
        """Yield all rows, one group in memory at a time."""
        for group in range(len(self._groups)):
            table = self._read(group, None)
            for row in range(table.num_rows):
                yield self._row(table, row)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cache": OrderedDict()}

    def keys(self) -> Iterator[str]:
        """Yield the key of every row, in order."""
        for group in range(len(self._groups)):
            yield from self._read(group, ["key"])["key"].to_pylist()

    def unreadable(self) -> list[Unreadable]:
        """Return what the encodes could not read, all ranks together, less what the store holds by now."""
        found: dict[str, Unreadable] = {}
        for path in sorted((self.path / UNREADABLE).glob("rank-*.jsonl")):
            lines = path.read_text(encoding="utf-8").splitlines()
            rows = [Unreadable(**json.loads(line)) for line in lines if line.endswith("}")]  # a kill can cut the last
            found |= {row.key: row for row in rows}
        if found:
            for key in self.keys():
                found.pop(key, None)
        return list(found.values())

    def _group(self, group: int) -> pa.Table:
        if group not in self._cache:
            self._cache[group] = self._read(group, None)
            if len(self._cache) > self._cached_groups:
                self._cache.popitem(last=False)
        self._cache.move_to_end(group)
        return self._cache[group]

    def _read(self, group: int, columns: list[str] | None) -> pa.Table:
        number, group_of_part = self._groups[group]
        part = self._parts[number]
        try:
            with pq.ParquetFile(part) as file:
                return file.read_row_group(group_of_part, columns=columns).combine_chunks()
        except pa.ArrowInvalid as error:
            raise _damaged(part, error) from error

    def _row(self, table: pa.Table, row: int) -> TokenRow:
        key = table["key"][row].as_py()
        ids = table["ids"][row].values.to_numpy().astype(np.int64)
        height, width = table["height"][row].as_py(), table["width"][row].as_py()
        if ids.size != height * width or (ids.size and ids.max() >= self.info.codebook_size):
            raise ValueError(
                f"{self.path} is damaged: {key!r} has {ids.size} ids up to {ids.max(initial=0)} on a grid of "
                f"{height} x {width}, of a codebook of {self.info.codebook_size}"
            )
        return TokenRow(key, torch.from_numpy(ids).reshape(height, width), table["caption"][row].as_py())


class PartWriter:
    """Writes the parts of one rank. Rows wait in memory until :meth:`flush`, which writes one complete part of them."""

    def __init__(self, path: Path, info: StoreInfo, *, rank: int = 0, world_size: int = 1) -> None:
        self._path, self._info, self._rank = path, info, rank
        path.mkdir(parents=True, exist_ok=True)
        for leftover in path.glob(".part-*.tmp"):  # of a process that was killed while it wrote
            if _is_ours(_rank_of(leftover), rank, world_size):
                leftover.unlink()
        numbers = (int(part.stem.split("-")[2]) for part in part_paths(path) if _rank_of(part) == rank)
        self._number = max(numbers, default=0) + 1
        self._schema = _schema(info)
        self._empty()

    def __len__(self) -> int:
        """Number of rows that wait."""
        return len(self._keys)

    def add(self, keys: Sequence[str], ids: Tensor, captions: Sequence[str | None]) -> None:
        """Take rows: ids are (B, h, w)."""
        self._keys += keys
        self._captions += captions
        self._ids.append(ids.cpu().numpy().astype(self._info.ids_dtype))

    def flush(self) -> None:
        """Write the waiting rows as one part, whole or not at all; OSError if there is no room."""
        if not self._keys:
            return
        ids = np.concatenate(self._ids)
        rows, height, width = ids.shape
        offsets = np.arange(rows + 1, dtype=np.int32) * (height * width)
        table = pa.table(
            {
                "key": self._keys,
                "ids": pa.ListArray.from_arrays(offsets, ids.reshape(-1)),
                "height": np.full(rows, height, np.int32),
                "width": np.full(rows, width, np.int32),
                "caption": self._captions,
            },
            schema=self._schema,
        )
        name = f"part-{self._rank:05d}-{self._number:06d}.parquet"
        _write_whole(self._path / f".{name}.tmp", self._path / name, table)
        self._number += 1
        self._empty()

    def _empty(self) -> None:
        self._keys: list[str] = []
        self._captions: list[str | None] = []
        self._ids: list[np.ndarray[Any, Any]] = []


class UnreadableLog:
    """The file that names what one rank could not read: cleared at the start, then a line at once for each."""

    def __init__(self, path: Path, *, rank: int = 0, world_size: int = 1) -> None:
        folder = path / UNREADABLE
        for old in folder.glob("rank-*.jsonl"):  # every unreadable picture is tried again, and written again
            if _is_ours(_rank_of(old), rank, world_size):
                old.unlink()
        self.path = folder / f"rank-{rank:05d}.jsonl"

    def add(self, row: Unreadable) -> None:
        """Write a line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row._asdict()) + "\n")


def part_paths(store: Path) -> list[Path]:
    """Return the complete parts of a store in the order of their names; empty if there is none."""
    return sorted(store.glob("part-*-*.parquet"))


def stored_info(store: Path) -> StoreInfo | None:
    """Return what the ids of a store mean; None if it has no part yet."""
    parts = part_paths(store)
    return _info_and_groups(parts[0])[0] if parts else None


def refuse_other(got: StoreInfo, wanted: StoreInfo, *, what: str, store: Path) -> None:
    """ValueError that names every difference, both values, unless two infos are equal."""
    mine, theirs = got.model_dump(), wanted.model_dump()
    differences = [f"{key} {mine[key]!r} (the store: {theirs[key]!r})" for key in mine if mine[key] != theirs[key]]
    if differences:
        raise ValueError(f"{what} does not fit the store {store}: it has {', '.join(differences)}; take another store")


@contextmanager
def fullness_explained(path: Path) -> Iterator[None]:
    """Say of a full disk, quota or file size limit, met inside, what to do; one OSError for all three."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        message = f"no room to write in {path} ({error.strerror}); what is complete is kept: make room, run it again"
        raise OSError(message) from error


def _schema(info: StoreInfo) -> pa.Schema:
    fields = {
        "key": pa.string(),
        "ids": pa.list_(pa.from_numpy_dtype(info.ids_dtype)),
        "height": pa.int32(),
        "width": pa.int32(),
        "caption": pa.string(),
    }
    return pa.schema(list(fields.items()), metadata={_METADATA_KEY: info.model_dump_json().encode()})


def _write_whole(beside: Path, path: Path, table: pa.Table) -> None:
    """Write a table as Parquet to the path ``beside``, then rename it to ``path``."""
    try:
        with beside.open("wb") as file:
            pq.write_table(table, file, compression="zstd", row_group_size=_ROWS_PER_GROUP)
            file.flush()
            os.fsync(file.fileno())  # a rename can outlive a power failure that the data does not
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    beside.replace(path)


def _info_and_groups(part: Path) -> tuple[StoreInfo, list[int]]:
    """Return what a part's ids mean, and the number of rows of each of its groups."""
    try:
        with pq.ParquetFile(part) as file:
            raw = (file.schema_arrow.metadata or {}).get(_METADATA_KEY)
            groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        if raw is None:
            raise ValueError(f"{part} is no part of a token store: its metadata has no {_METADATA_KEY.decode()!r}")
        return StoreInfo.model_validate_json(raw), groups
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(
            f"{part} was not written by this version: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        ) from error
    except pa.ArrowInvalid as error:
        raise _damaged(part, error) from error


def _damaged(part: Path, error: Exception) -> ValueError:
    return ValueError(f"{part} is damaged ({error}); delete it, and `toklip encode` makes its rows again")


def _rank_of(path: Path) -> int:
    return int(path.name.removeprefix(".").split(".")[0].split("-")[1])


def _is_ours(owner: int, rank: int, world_size: int) -> bool:
    """Whether a rank tidies up after another: after itself, and the first after those that are no more."""
    return owner == rank or (rank == 0 and owner >= world_size)
