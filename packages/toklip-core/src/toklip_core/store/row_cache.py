"""Rows of token stores that are kept in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import pyarrow as pa


class RowCache:
    """Groups of rows of one store or of several; those that were not read for the longest time are dropped first.

    It is pickled without its groups.

    Args:
        rows: largest number of rows of all groups together; one group is kept in any case.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._groups: OrderedDict[Hashable, pa.Table] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of groups."""
        return len(self._groups)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_groups": OrderedDict()}

    def group(self, key: Hashable, read: Callable[[], pa.Table]) -> pa.Table:
        """Return the group of a key, which is read if it is not there."""
        if key not in self._groups:
            self._groups[key] = read()
            while len(self._groups) > 1 and sum(table.num_rows for table in self._groups.values()) > self.rows:
                self._groups.popitem(last=False)
        self._groups.move_to_end(key)
        return self._groups[key]
