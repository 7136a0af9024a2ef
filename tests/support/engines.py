"""Pictures for the engines that encode, and the law that all of them write the rows of the built-in one."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from toklip_core.store import TokenStore

from tests.support.encoding import encode_with


def write_pictures(folder: Path, *, count: int, broken: int) -> pa.Table:
    """Write pictures into a folder, every third with a caption; return their keys, bytes and captions."""
    folder.mkdir(parents=True)
    rows = []
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).resize((48, 40), Image.Resampling.BICUBIC).save(file, "png")
        data = file.getvalue()[: 60 if number % (count // broken) == 0 else None]
        path = folder / f"{number:04}.png"
        path.write_bytes(data)
        caption = f"noise {number}" if number % 3 == 0 else None
        if caption:
            path.with_suffix(".txt").write_text(caption)
        rows.append({"key": path.as_posix(), "image": data, "caption": caption})
    return pa.Table.from_pylist(rows)


def built_in_store(folder: str = "pictures", **options) -> TokenStore:
    """Encode a folder with the built-in engine."""
    encode_with([folder], "built-in", **{"tokenizer": "mean-colour", **options})
    return TokenStore("built-in")


def refuse_other_rows(store: TokenStore, expected: TokenStore) -> None:
    """Assert that a store has the rows of another one, in any order, and the same unreadable pictures."""
    assert store.info == expected.info
    assert len(store) == len(expected)
    wanted = {row.key: row for row in expected}
    for row in store:
        assert row.caption == wanted[row.key].caption and torch.equal(row.ids, wanted[row.key].ids), row.key
    reports = [{(row.key, row.reason) for row in each.unreadable()} for each in (store, expected)]
    assert reports[0] == reports[1] != set()
