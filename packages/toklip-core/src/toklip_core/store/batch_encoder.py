"""Encoder of batches of pictures, for programs that share the work themselves: Ray Data, Spark, `datasets`."""

from __future__ import annotations

import io
import os
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image

from toklip_core.config import Compute, refuse_missing_device
from toklip_core.pictures import bytes_of_cell, open_picture
from toklip_core.store.columns import RowMaker, row_maker
from toklip_core.store.format import StoreInfo
from toklip_core.store.reading import UnopenedPicture
from toklip_core.store.settings import EncodeSettings
from toklip_core.store.tables import EncodedBatch

_COLUMNS = ("key", "image", "caption")
#: The process that imported this module; a forked one has another number.
_IMPORTED_IN = os.getpid()


class BatchEncoder:
    """Encoder of batches of pictures into rows of a token store: one class for every program that has the pictures.

    It can be pickled, and its models are loaded by the first call, so each process that gets it loads its own. Rows are
    those of :func:`toklip_core.store.encode_pictures`, with the error of each picture that cannot be read.
    ``TokenStore.adopt`` makes a store of what was written. In a forked process, calls
    set torch to one thread, because torch hangs there if its parent has computed with several.

    Args:
        settings: contents of the store.
        compute: device, dtype, number of pictures that the models take at a time, and limit of a picture's pixels.

    >>> from pathlib import Path
    >>> encoder = BatchEncoder(EncodeSettings(tokenizer="vqgan-tiny"))
    >>> cat = Path("docs/examples/photographs/cat.jpg").read_bytes()
    >>> rows = encoder({"key": ["cat", "broken"], "image": [cat, b"no picture"]})
    >>> rows.column_names
    ['key', 'ids_0', 'ids_1', 'ids_2', 'ids_3', 'height', 'width', 'caption', 'error']
    >>> rows["error"].to_pylist()
    [None, 'no picture in a format that is known here']
    """

    def __init__(self, settings: EncodeSettings, compute: Compute = Compute()) -> None:
        self._settings, self._compute = settings, compute

    def __call__(self, batch: Any) -> Any:  # noqa: ANN401  (what the programs have, and pandas is not required)
        """Return the rows of B pictures, in their order.

        Args:
            batch: a mapping, a table of pyarrow or a data frame of pandas with the columns ``key`` (texts), ``image``
                (bytes of files, or what `datasets` stores) and, if wanted, ``caption`` (texts or nulls).

        Returns:
            The columns of the store and ``error``: why a picture cannot be read, else null. A row with an error has
            nothing but its key. A data frame for a data frame, otherwise a table of pyarrow.

        Raises:
            ValueError: a column is missing, a cell is not text or not bytes, the models do not fit the settings, or a
                row cannot be computed.
            FileNotFoundError: weights are missing; the first call loads them.
            LookupError: no tokenizer or model has the name.
        """
        keys, pictures = _pictures_in(batch, self._compute.max_pixels)
        parts = list(self.encoded(pictures))
        errors = {picture.key: picture.reason for part in parts for picture in part.unreadable}
        table = pa.concat_tables(part.table for part in parts).combine_chunks()
        numbers = pa.array([picture.key for picture in pictures], pa.string())
        table = table.take(pc.index_in(numbers, table["key"].combine_chunks()))  # unreadable pictures have a null row
        table = table.set_column(0, "key", pa.array(keys, pa.string()))
        table = table.append_column("error", pa.array([errors.get(picture.key) for picture in pictures], pa.string()))
        return table if isinstance(batch, Mapping | pa.Table) else table.to_pandas()

    @property
    def info(self) -> StoreInfo:
        """Metadata of the store.

        This loads the models, unless a call has; FileNotFoundError, LookupError or ValueError as :meth:`__call__`
        raises for them.
        """
        _leave_threads()
        return self._maker.info

    def encoded(self, pictures: Iterable[UnopenedPicture], done: Container[str] = ()) -> Iterator[EncodedBatch]:
        """Yield the rows of pictures that are not opened yet, without those whose keys are ``done``.

        Raises:
            FileNotFoundError: weights are missing; the first call loads them.
            LookupError: no tokenizer or model has the name.
            ValueError: the models do not fit the settings, or a row cannot be computed.
        """
        _leave_threads()
        reader = self._maker.reader(self._compute.batch_size)
        for batch in reader.batches(pictures, done):
            yield self._maker.encoded(batch)

    @cached_property
    def _maker(self) -> RowMaker:
        refuse_missing_device(self._compute.device)
        maker = row_maker(self._settings, dtype=self._compute.dtype)
        maker.to(self._compute.device)
        return maker

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_maker"}


def _leave_threads() -> None:
    if os.getpid() != _IMPORTED_IN:
        # Threads of OpenMP do not survive a fork, and an operation of torch that wants them waits for ever.
        torch.set_num_threads(1)


@dataclass(frozen=True)
class _PictureCell:
    """A picture of a batch; its key is the number of its row, because the batch may have a key twice."""

    key: str
    cell: object
    text: str | None
    max_pixels: int
    path: str = ""

    def image(self) -> Image.Image:
        return open_picture(io.BytesIO(bytes_of_cell(self.cell, "image")), max_pixels=self.max_pixels)

    def caption(self) -> str | None:
        return self.text


def _pictures_in(batch: Any, max_pixels: int) -> tuple[list[str], list[_PictureCell]]:  # noqa: ANN401 - as above
    """Return the keys of a batch, and its pictures."""
    names = [str(name) for name in (batch.column_names if isinstance(batch, pa.Table) else batch)]
    if not {"key", "image"} <= {*names}:
        raise ValueError(f"got the columns {', '.join(names)}; rename those of keys and files to 'key' and 'image'")
    named = [name for name in _COLUMNS if name in names]
    if not isinstance(batch, Mapping | pa.Table):
        batch = pa.Table.from_pandas(batch[named], preserve_index=False)
    if isinstance(batch, pa.Table):
        batch = {name: batch[name].to_pylist() for name in named}
    keys, cells = list(batch["key"]), list(batch["image"])
    captions = list(batch.get("caption", [None] * len(keys)))
    for key, cell, caption in zip(keys, cells, captions, strict=True):
        if not isinstance(key, str) or not isinstance(caption, str | None):
            raise ValueError(f"got the key {key!r} with the caption {caption!r}; both must be texts")
        if not isinstance(cell, bytes | Mapping | None):
            raise ValueError(
                f"got a {type(cell).__name__} as the picture {key!r}; pass the bytes of its file (in `datasets`: "
                'cast_column("image", Image(decode=False)))'
            )
    rows = enumerate(zip(cells, captions, strict=True))
    return keys, [_PictureCell(str(row), cell, text, max_pixels) for row, (cell, text) in rows]
