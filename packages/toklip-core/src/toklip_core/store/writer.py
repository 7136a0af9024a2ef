"""Writer of a store: writes parts under other names, renames them, and removes leftovers of killed processes."""

from __future__ import annotations

import errno
import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
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
    report_paths,
)

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
        return len(self._keys)

    @property
    def nbytes(self) -> int:
        """Number of bytes of the waiting ids and features."""
        return sum(array.nbytes for column in self._lists.values() for array in column)

    def add(
        self,
        keys: Sequence[str],
        ids: Tensor,
        captions: Sequence[str | None],
        features: Mapping[str, Tensor] = MappingProxyType({}),
        crops: Tensor | None = None,
    ) -> None:
        """Add rows to those that wait.

        Args:
            keys: B keys.
            ids: (B, h, w, Q).
            captions: B captions, None for a picture without one.
            features: column -> features (B, E), or (B, N, D) for "tokens", for every column of features.
            crops: (B, VIEWS, h, w, Q), if the store has them.

        Raises:
            ValueError: a feature does not fit into float16.
        """
        assert features.keys() == self._info.features.keys()
        assert (crops is not None) == (self._info.augment is not None)
        # Conversions that can fail come first, so that the waiting rows stay consistent.
        lists = {name: _halves(name, feature) for name, feature in features.items()}
        for name, grids in ((IDS, ids), (CROPS, crops)):
            if grids is not None:
                levels = zip(self._info.level_columns(name).items(), grids.cpu().unbind(-1), strict=True)
                lists |= {column: grid.numpy().astype(dtype) for (column, dtype), grid in levels}
        self._keys += keys
        self._captions += captions
        self._grids += [ids.shape[1:3]] * len(keys)
        for name, numbers in lists.items():
            self._lists[name].append(numbers)

    def flush(self) -> None:
        """Write the waiting rows as one complete part; OSError if the disk is full."""
        if not self._keys:
            return
        heights, widths = np.array(self._grids, np.int32).T
        columns = {"key": self._keys, "height": heights, "width": widths, "caption": self._captions}
        columns |= {name: _lists(np.concatenate(numbers)) for name, numbers in self._lists.items()}
        table = pa.table(columns, schema=self._schema)
        name = f"part-{self._rank:05d}-{self._number:06d}.parquet"
        beside, inside = places(self._path, f".{name}.tmp")
        _write_whole(beside if self._beside else inside, self._path / name, table, _with_dictionary(self._info))
        self._number += 1
        self._empty()

    def _empty(self) -> None:
        self._keys: list[str] = []
        self._captions: list[str | None] = []
        self._grids: list[tuple[int, ...]] = []
        #: Column of lists -> the numbers (B, ...) of each batch.
        self._lists: dict[str, list[np.ndarray[Any, Any]]] = defaultdict(list)


class UnreadableLog:
    """Report of one rank's unreadable pictures: cleared at the start, then a line at once for each picture."""

    def __init__(self, path: Path, *, rank: int = 0, world_size: int = 1) -> None:
        for old in report_paths(path):  # unreadable pictures are tried again and reported again
            if _tidied_by(rank_of_part(old), rank, world_size):
                old.unlink()
        beside, inside = places(path, UNREADABLE)
        self.path = (beside if lies_beside(path, rank) else inside) / f"rank-{rank:05d}.jsonl"
        self._written = True

    def add(self, row: UnreadablePicture) -> None:
        """Write a line. If that fails, log it once and go on, because the readable pictures matter more."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row._asdict()) + "\n")
        except OSError as error:
            if self._written:
                _log.warning("what cannot be read is named nowhere: %s", error)
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


def _lists(rows: np.ndarray[Any, Any]) -> pa.ListArray:
    """Return an array (B, ...) as a column of B lists."""
    offsets = np.arange(len(rows) + 1, dtype=np.int32) * (rows.size // len(rows))
    return pa.ListArray.from_arrays(offsets, rows.reshape(-1))


def _halves(name: str, feature: Tensor) -> np.ndarray[Any, Any]:
    half = feature.detach().half()
    if not half.isfinite().all():
        raise ValueError(
            f"got {name} up to {feature.abs().max().item():.3g}, but the store has float16, which ends at 65504; the "
            "model's weights are damaged, or it overflows: take float32"
        )
    return half.cpu().numpy()


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
    """Write a table as Parquet to the path ``beside``, then rename it to ``path``."""
    rows = min(_ROWS_PER_GROUP, max(1, _BYTES_PER_GROUP * table.num_rows // table.nbytes))
    metadata = {**table.schema.metadata, CHECKSUMS_KEY: checksums(table, rows)}
    with replacing(path, beside=beside, to_disk=True) as beside, beside.open("wb") as file:
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
