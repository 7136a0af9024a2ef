"""The token store: a folder of Parquet files with the ids of pictures, which other tools can read too.

    part-00000-000001.parquet    rank, number: key, ids (flat, raster order; ids_0, ids_1, ... if there are several
                                 levels), height, width (of the grid), caption, features if a model was asked for
                                 them, and crops: ids of 20 more views of each

Beside it, ``.STORE.unreadable/rank-00000.jsonl`` lists unreadable pictures with the reason. All other files in the
folder are empty, so every reader of Parquet accepts the folder.

Every part carries, under ``toklip`` in its schema's metadata, what its ids mean (:class:`StoreInfo`). Parts are
written under other names and renamed, so a file with the name of a part is complete.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator
from hashlib import blake2b, sha256
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from toklip_core.pictures import VIEWS
from toklip_core.store.adopt import adopt_rows
from toklip_core.store.format import (
    CROPS,
    FEATURES,
    IDS,
    StoreInfo,
    UnreadablePicture,
    part_paths,
    read_report,
    refuse_other,
)
from toklip_core.store.key_set import KeySet
from toklip_core.store.part_reader import part_contents, quote_key, read_group
from toklip_core.store.row_cache import RowCache


class TokenRow(NamedTuple):
    """One picture of a store: its key, its ids (h, w, Q) int64, its caption if it has one, its features if any.

    Features are float32 with the 11 bits of float16: pooled (E,) and teacher (E',), of unit norm up to rounding, and
    tokens (N, D) of the encoder. Crops are the ids of further views, (VIEWS, h, w, Q) int64, in the order of
    :func:`toklip_core.pictures.all_views`.
    """

    key: str
    ids: Tensor
    caption: str | None
    pooled: Tensor | None = None
    tokens: Tensor | None = None
    teacher: Tensor | None = None
    crops: Tensor | None = None


class _Place(NamedTuple):
    """Place of a row: its part, its number there, counted from 0, and its key."""

    part: Path
    row: int
    key: str


class TokenStore:
    """A sequence of the rows of a token store, which are read on demand; memory holds a few groups of 1,000 rows.

    It can be pickled, so that the workers of a DataLoader open the files themselves. Reading a row reads its group, so
    shuffled reading is only fast if it is shuffled in blocks.

    Args:
        path: folder of the store.
        cached_rows: maximum number of rows in cached groups, or a cache that several stores share; None: four groups.
        features: stored features, and "crops", that rows should have; others are not read.

    Raises:
        FileNotFoundError: there is no store at the path.
        ValueError: a part is damaged, is not part of a token store, has another format, or belongs to another
            tokenizer. Reading damaged rows raises it, too.

    >>> from tempfile import mkdtemp
    >>> from toklip_core.store import EncodeSettings, encode_pictures
    >>> folder = mkdtemp()
    >>> settings = EncodeSettings(tokenizer="vqgan-tiny", image_size=64)
    >>> report = encode_pictures(["scenes:train?count=3"], folder, settings)
    >>> store = TokenStore(folder)
    >>> len(store), store[0].ids.shape
    (3, torch.Size([8, 8, 4]))
    """

    def __init__(
        self,
        path: Path | str,
        *,
        cached_rows: int | RowCache | None = None,
        features: Collection[str] = (*FEATURES, CROPS),
    ) -> None:
        self.path = Path(path)
        self._parts = part_paths(self.path)
        if not self._parts:
            found = "no part-*.parquet is in it, as `toklip encode` writes" if self.path.exists() else "it is not there"
            raise FileNotFoundError(f"no token store at {self.path}: {found}")
        self.info = part_contents(self._parts[0]).info
        self._groups: list[tuple[int, int]] = []
        rows: list[int] = []
        checksum = sha256()
        for number, part in enumerate(self._parts):
            info, more, listed = part_contents(part)
            checksum.update(f"{more} {listed}\n".encode())
            refuse_other(info, self.info, what=str(part), store=self.path)
            self._groups += [(number, group) for group in range(len(more))]
            rows += more
        self._ends = list(accumulate(rows))
        #: Number of rows of each group, which is read at once.
        self.group_rows = tuple(rows)
        #: Checksum of all rows in their order and groups, from the parts' metadata; no row is read for it.
        self.checksum = f"sha256 {checksum.hexdigest()}"
        self._features = [name for name in self.info.features if name in features]
        self._crops = self.info.augment is not None and CROPS in features
        crops = self.info.level_columns(CROPS) if self._crops else ()
        self._columns = [*self.info.columns, *self._features, *crops]
        kept = 4 * max(rows, default=0) if cached_rows is None else cached_rows
        self._cache = kept if isinstance(kept, RowCache) else RowCache(kept)
        self._distinct = False

    @classmethod
    def adopt(cls, folder: Path | str, store: Path | str, info: StoreInfo) -> Self:
        """Make a store of the rows that another program wrote to Parquet, or add them to a store; return the store.

        The rows are those of a :class:`toklip_core.store.BatchEncoder`, with integers and floats of any type. Rows with
        an ``error`` join the unreadable pictures of the store, other columns are left out, and rows whose keys the
        store has are skipped. The files stay as they are. What was written before a call was killed,
        or refused a row, is kept; another call adds the rest.

        Args:
            folder: folder of the files, whose names end with .parquet, and of further folders.
            store: folder of the store; it is created if missing, and must not be in ``folder``.
            info: ``info`` of the encoder.

        Raises:
            FileNotFoundError: there is no Parquet file, or no row without an error.
            ValueError: a column is missing, a value does not fit ``info``, two rows have one key, or the store has
                another info. The message names the file and the row.
            OSError: the store cannot be written.
        """
        path = Path(store)
        adopt_rows(Path(folder), path, info, lambda: KeySet(stored_keys(path, info, what="the info of these rows")))
        return cls(path)

    def __len__(self) -> int:
        """Return the number of pictures."""
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> TokenRow:
        """Return the row of an index; negative indices count from the end."""
        wanted = index + len(self) if index < 0 else index
        if not 0 <= wanted < len(self):
            raise IndexError(f"row {index} of a store of {len(self)}")
        group = bisect_right(self._ends, wanted)
        start = self._ends[group - 1] if group else 0
        return self._row(self._group(group), wanted - start)

    def __iter__(self) -> Iterator[TokenRow]:
        """Yield all rows, with one group in memory at a time; ValueError if two rows have the same key."""
        self._look_for_repeats()
        for group in range(len(self._groups)):
            table = self._read(group, self._columns)
            for row in range(table.num_rows):
                yield self._row(table, row)

    def keys(self) -> Iterator[str]:
        """Yield the keys of all rows, in order; ValueError at the end if two rows have the same key."""
        digests = bytearray()
        for group in range(len(self._groups)):
            for key in self._read(group, ["key"])["key"].to_pylist():
                digests += blake2b(key.encode(), digest_size=8).digest()
                yield key
        self._refuse_repeats(np.frombuffer(digests, np.uint64))

    def captions(self) -> Iterator[str | None]:
        """Yield the captions of all rows, in order; ValueError if two rows have the same key."""
        self._look_for_repeats()
        for group in range(len(self._groups)):
            yield from self._read(group, ["caption"])["caption"].to_pylist()

    def refuse_missing_captions(self) -> None:
        """Raise ValueError, with their number, if rows have no caption, or an empty one."""
        if missing := sum(not caption for caption in self.captions()):
            raise ValueError(
                f"{missing} of {len(self)} rows of {self.path} have no caption; put a KEY.txt beside each picture, and "
                "encode into another store"
            )

    def unreadable(self) -> list[UnreadablePicture]:
        """Return the pictures that no rank could read, without those that the store has by now."""
        found = read_report(self.path)
        if found:
            for key in self.keys():
                found.pop(key, None)
        return list(found.values())

    def _look_for_repeats(self) -> None:
        """Check all keys for repeats, once; access to rows by index does not need this."""
        if not self._distinct:
            for _ in self.keys():
                pass

    def _refuse_repeats(self, digests: np.ndarray[Any, Any]) -> None:
        ordered = np.sort(digests)
        if not (ordered[1:] == ordered[:-1]).any():
            self._distinct = True
            return
        order = np.argsort(digests, kind="stable")
        places = np.flatnonzero(ordered[1:] == ordered[:-1])
        for place in places[np.argsort(order[places + 1])]:  # starting with the first repeated row of the store
            first, second = (self._locate(int(order[place + offset])) for offset in (0, 1))
            if first.key == second.key:
                raise ValueError(
                    f"{second.part} is damaged: row {second.row} has the key {quote_key(second.key)}, as row "
                    f"{first.row} of {first.part} has; delete one of the parts, and `toklip encode` makes its other "
                    "rows again"
                )
        self._distinct = True

    def _locate(self, index: int) -> _Place:
        group = bisect_right(self._ends, index)
        number, group_of_part = self._groups[group]
        row = index - (self._ends[group - 1] if group else 0)
        before = sum(self.group_rows[group - group_of_part : group])
        return _Place(self._parts[number], before + row, self._read(group, ["key"])["key"][row].as_py())

    def _group(self, group: int) -> pa.Table:
        return self._cache.group((self.path, *self._columns, group), lambda: self._read(group, self._columns))

    def _read(self, group: int, columns: list[str]) -> pa.Table:
        number, group_of_part = self._groups[group]
        return read_group(self._parts[number], group_of_part, columns)

    def _row(self, table: pa.Table, row: int) -> TokenRow:
        key = table["key"][row].as_py()
        ids = self._ids(table, row, IDS, self.info.grid)
        optional = {name: self._feature(table, row, name) for name in self._features}
        if self._crops:
            optional[CROPS] = self._ids(table, row, CROPS, (VIEWS, *self.info.grid))
        return TokenRow(key, ids, table["caption"][row].as_py(), **optional)

    def _ids(self, table: pa.Table, row: int, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return the ids (..., Q) of a row from the columns of their levels."""
        columns = self.info.level_columns(name)
        ids = np.empty((*shape, len(columns)), np.int64)
        for level, column in enumerate(columns):
            ids[..., level] = table[column][row].values.to_numpy().reshape(shape)
        return torch.from_numpy(ids)

    def _feature(self, table: pa.Table, row: int, name: str) -> Tensor:
        feature = torch.from_numpy(table[name][row].values.to_numpy().astype(np.float32))
        return feature.reshape(-1, self.info.features[name].width) if name == "tokens" else feature


def stored_keys(path: Path, info: StoreInfo, *, what: str) -> Iterable[str]:
    """Return the keys of a store, none where it is empty; ValueError unless rows with this info belong there.

    Args:
        path: folder of the store.
        info: metadata of the rows.
        what: name of the rows, for the message: "this encode".
    """
    if not part_paths(path):
        return ()
    store = TokenStore(path)
    refuse_other(info, store.info, what=what, store=path)
    return store.keys()
