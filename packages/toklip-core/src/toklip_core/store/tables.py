"""Rows of a store as tables of Arrow, which every engine passes to the writer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from torch import Tensor

from toklip_core.store.format import CROPS, IDS, StoreInfo, UnreadablePicture, part_schema


class EncodedBatch(NamedTuple):
    """Rows of a store, and the pictures that were left out among them."""

    #: Columns of a part, see :func:`toklip_core.store.format.part_schema`.
    table: pa.Table
    unreadable: list[UnreadablePicture]
    skipped: int


def row_table(
    info: StoreInfo,
    keys: Sequence[str],
    ids: Tensor,
    captions: Sequence[str | None],
    features: Mapping[str, Tensor] = MappingProxyType({}),
    crops: Tensor | None = None,
) -> pa.Table:
    """Return B rows with the columns of a part.

    Args:
        info: metadata of the store.
        keys: B keys.
        ids: (B, h, w, Q).
        captions: B captions, None for a picture without one.
        features: column -> features (B, E), or (B, N, D) for "tokens", for every column of features.
        crops: (B, VIEWS, h, w, Q), if the store has them.

    Raises:
        ValueError: a feature does not fit into float16.
    """
    assert features.keys() == info.features.keys()
    assert (crops is not None) == (info.augment is not None)
    lists = {name: _halves(name, feature) for name, feature in features.items()}
    for name, grids in ((IDS, ids), (CROPS, crops)):
        if grids is not None:
            levels = zip(info.level_columns(name).items(), grids.cpu().unbind(-1), strict=True)
            lists |= {column: grid.numpy().astype(dtype) for (column, dtype), grid in levels}
    heights, widths = (np.full(len(keys), side, np.int32) for side in ids.shape[1:3])
    columns = {"key": keys, "height": heights, "width": widths, "caption": captions}
    columns |= {name: list_column(numbers) for name, numbers in lists.items()}
    return pa.table(columns, schema=part_schema(info))


def list_column(rows: np.ndarray[Any, Any]) -> pa.ListArray:
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
