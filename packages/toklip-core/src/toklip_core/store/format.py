"""Format of a token store: its metadata, its parts and their checksums, and reports of unreadable pictures."""

from __future__ import annotations

import glob
import json
import re
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, PositiveInt

from toklip_core.config import Config
from toklip_core.embeddings import CodebookSize
from toklip_core.files import parse_json
from toklip_core.tokenizer import TokenizerRecord

#: Key of the :class:`StoreInfo` in a part's metadata.
METADATA_KEY = b"toklip"

#: Key of the checksums of its rows, see :func:`checksums`.
CHECKSUMS_KEY = b"toklip.crc32"

#: Version of the layout, in the metadata of every part; a reader refuses other versions.
FORMAT: Final = 2

#: Columns of features; the fields with these names in :class:`StoreInfo` describe them.
FEATURES = ("pooled", "tokens", "teacher")

#: Column with the ids of a picture; see :meth:`StoreInfo.level_columns` for several levels.
IDS = "ids"

#: Column with the ids of further views of a picture, see :mod:`toklip_core.pictures.ten_crop`.
CROPS = "crops"

#: Folder with the reports of a store.
UNREADABLE = ".unreadable"

# Names of parts; similar names are refused.
_PART_NAME = re.compile(r"part-\d{5,}-\d{6,}\.parquet", re.ASCII)
_REPORT_NAME = re.compile(r"rank-\d{5,}\.jsonl", re.ASCII)


class FeatureInfo(Config):
    """The model that computed a feature column of a store."""

    model: str = Field(description="Name of the model, or of its folder.")
    weights_checksum: str = Field(description="SHA-256 of the model's weights.")
    width: int = Field(gt=0, description="Width of a feature; for the column `tokens`, of one token.")
    count: int = Field(default=1, gt=0, description="Number of features per picture; for `tokens`, that of tokens.")


class StoreInfo(Config):
    """The metadata of a token store. `toklip encode` adds to a store only if all of its metadata are equal."""

    format: Literal[2] = Field(default=FORMAT, description="Version of the store format.")
    tokenizer: TokenizerRecord = Field(description="VQ tokenizer that made the ids.")
    codebook_sizes: tuple[CodebookSize, ...] = Field(
        min_length=1, description="Codebook size K of each level; ids of a level lie in [0, K)."
    )
    grid: tuple[PositiveInt, PositiveInt] = Field(description="Rows and columns of the ids of a picture.")
    image_size: int = Field(gt=0, description="Side of the square that was encoded, in pixels.")
    resize: Literal["crop", "squash", "pad"] = Field(
        description="How pictures were made square: crop took the centre, squash ignored the aspect ratio, pad added "
        "grey."
    )
    dtype: Literal["float32", "bfloat16"] = Field(description="Precision of the tokenizer and the models.")
    augment: Literal["ten-crop"] | None = Field(
        default=None,
        description="Augmentation in the column `crops`: LlamaGen's ten crops at 1.1 and at 1.05 times the side.",
    )
    pooled: FeatureInfo | None = Field(
        default=None, description="TokLIP that computed the column `pooled`, one unit-norm feature per picture."
    )
    tokens: FeatureInfo | None = Field(
        default=None, description="TokLIP that computed the column `tokens`, all tokens of each picture."
    )
    teacher: FeatureInfo | None = Field(
        default=None, description="Teacher that computed the column `teacher`, one unit-norm feature per picture."
    )

    @property
    def features(self) -> dict[str, FeatureInfo]:
        """Columns of features in the store, with their models."""
        return {name: info for name in FEATURES if (info := getattr(self, name)) is not None}

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of every part, without those of features and crops."""
        return ("key", *self.level_columns(IDS), "height", "width", "caption")

    def level_columns(self, name: str) -> dict[str, np.dtype[Any]]:
        """Return the column of each level's ids, with the smallest unsigned integer type that holds all of them.

        A single level has the column ``name``; several have ``name_0``, ``name_1`` and so on.

        Args:
            name: IDS or CROPS.
        """
        sizes = self.codebook_sizes
        names = [name] if len(sizes) == 1 else [f"{name}_{level}" for level in range(len(sizes))]
        return {column: np.min_scalar_type(size - 1) for column, size in zip(names, sizes, strict=True)}


class UnreadablePicture(NamedTuple):
    """A picture that could not be read: its key, its file, and the reason."""

    key: str
    source: str
    reason: str


def report_paths(store: Path) -> list[Path]:
    """Return the files in which the ranks list unreadable pictures."""
    paths = (path for folder in places(store, UNREADABLE) for path in sorted(folder.glob("rank-*.jsonl")))
    return [path for path in paths if _REPORT_NAME.fullmatch(path.name) and path.is_file()]


def leftover_parts(store: Path) -> list[Path]:
    """Return the unfinished parts, which are being written or were left by a killed process."""
    found: list[Path] = []
    for place in places(store, ".part-"):
        for path in place.parent.glob(f"{glob.escape(place.name)}*.tmp"):
            name = f"part-{path.name.removeprefix(place.name).removesuffix('.tmp')}"
            if _PART_NAME.fullmatch(name) and path.is_file():
                found.append(path)
    return found


def read_report(store: Path) -> dict[str, UnreadablePicture]:
    """Return key -> report of all ranks, including pictures that the store has by now."""
    return {row.key: row for row in reported(store)}


def reported(store: Path) -> Iterator[UnreadablePicture]:
    """Yield the lines of all reports; of several with one key the last one counts."""
    for path in report_paths(store):
        for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), start=1):
            try:
                row = parse_json(line, f"{path}, row {number}")
            except ValueError:  # a kill can cut a line
                continue
            texts = isinstance(row, dict) and all(isinstance(value, str) for value in row.values())
            if not texts or row.keys() != {*UnreadablePicture._fields}:
                wanted = ", ".join(UnreadablePicture._fields)
                raise ValueError(f"{path}, row {number} is damaged: wanted {wanted}; delete the file")
            yield UnreadablePicture(**row)


def lies_beside(store: Path, rank: int) -> bool:
    """Return whether a rank can keep unfinished parts and reports beside the store, which it tries with a file.

    Polars reads every nonempty file below a folder, hidden or not. So files only lie inside the store if they cannot be
    renamed into it from outside (it is a mount, the folder above is read-only, or the name is too long).
    """
    # The next encode removes a file of this name after a kill. It is empty, so readers ignore it.
    beside, inside = places(store, f".part-{rank:05d}-000000.parquet.tmp")
    try:
        beside.touch()
        beside.replace(inside)
    except OSError:
        with suppress(OSError):
            beside.unlink()
        return False
    inside.unlink()
    return True


def places(store: Path, name: str) -> tuple[Path, Path]:
    """Return the two hidden paths for a file of a store, whose name begins with a dot: beside the store, and inside."""
    # Resolved, because parts are in a link's target, and "." has no name.
    folder = store.resolve() if store.name in ("", "..") or store.is_symlink() else store
    return folder.with_name(f".{folder.name}{name}"), folder / name


def refuse_other_files(store: Path) -> None:
    """Raise ValueError for a folder with files of another kind and no part, such as one of pictures.

    Hidden files, lost+found and README files are ignored, because new file systems and repositories have them.
    """
    if not store.is_dir() or any(store.glob("part-*.parquet")):
        return
    names = sorted(path.name for path in store.iterdir())
    other = next((name for name in names if not name.startswith((".", "README", "lost+found"))), None)
    if other is not None:
        raise ValueError(f"{store} is no token store: it holds {other!r} and no part; name an empty or a new folder")


def part_paths(store: Path) -> list[Path]:
    """Return the complete parts of a store in the order of their names; empty if there is none.

    Raises:
        ValueError: a file has nearly the name of a part, as copies have.
    """
    paths = sorted(store.glob("part-*.parquet"))
    for path in paths:
        if _PART_NAME.fullmatch(path.name) is None:
            raise ValueError(
                f"{path} is named like a part of a token store, but not part-RRRRR-NNNNNN.parquet with a rank and a "
                "number; if it is a copy, delete it or move it out of there"
            )
    return paths


def refuse_other(got: StoreInfo, wanted: StoreInfo, *, what: str, store: Path) -> None:
    """Raise ValueError unless two infos are equal; the message has every difference with both values."""
    mine, theirs = _flat(got.model_dump()), _flat(wanted.model_dump())
    differences = [
        f"{key} {mine.get(key)!r} (the store: {theirs.get(key)!r})"
        for key in {**mine, **theirs}
        if mine.get(key) != theirs.get(key)
    ]
    if differences:
        raise ValueError(f"{what} does not fit the store {store}: it has {', '.join(differences)}; take another store")


def refuse_mixed(stores: Sequence[tuple[Path, StoreInfo]], *, read: Collection[str] = ()) -> None:
    """Raise ValueError unless stores whose rows are mixed agree.

    Args:
        stores: the path and the info of each.
        read: columns beside the ids that have to agree as well: augment, pooled, tokens, teacher.
    """
    unread = dict.fromkeys({"augment", "pooled", "tokens", "teacher"} - {*read})
    infos = [info.model_copy(update=unread) for _, info in stores]
    for (path, _), info in zip(stores, infos, strict=True):
        refuse_other(info, infos[0], what=str(path), store=stores[0][0])


def refuse_other_squares(info: StoreInfo, store: Path, *, image_size: int, resize: str) -> None:
    """Raise ValueError unless the pictures of a store were made square as a model takes them."""
    if (info.image_size, info.resize) != (image_size, resize):
        raise ValueError(
            f"{store} has ids of {info.image_size} px (resize {info.resize!r}), but the model takes {image_size} px "
            f"({resize!r}): encode again with --size {image_size} --resize {resize}"
        )


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{above}{key}.") if isinstance(value, Mapping) else {above + key: value}
    return flat


def part_schema(info: StoreInfo) -> pa.Schema:
    """Return the Arrow schema of a part, with its metadata except for the checksums."""
    ids, crops = (
        {column: pa.list_(pa.from_numpy_dtype(dtype)) for column, dtype in info.level_columns(name).items()}
        for name in (IDS, CROPS)
    )
    fields = dict(zip(info.columns, (pa.string(), *ids.values(), pa.int32(), pa.int32(), pa.string()), strict=True))
    fields |= dict.fromkeys(info.features, pa.list_(pa.float16()))
    if info.augment is not None:
        fields |= crops
    # Without None, so that versions without feature columns can read a store without features.
    metadata = info.model_dump_json(exclude_none=True).encode()
    return pa.schema(list(fields.items()), metadata={METADATA_KEY: metadata})


def column_crc32(column: pa.ChunkedArray) -> int:
    """Return the CRC-32 of a column's values, see :func:`checksums`."""
    array = column.combine_chunks()
    if pa.types.is_string(array.type):
        return zlib.crc32(json.dumps(array.to_pylist()).encode())
    if not pa.types.is_list(array.type):
        return zlib.crc32(array.to_numpy())
    return zlib.crc32(array.flatten().to_numpy(), zlib.crc32(pc.list_value_length(array).to_numpy()))


def checksums(table: pa.Table, group_rows: int) -> bytes:
    """Return the checksums of a part as JSON; Parquet's own ones do not cover footers and headers of pages.

    For each group of ``group_rows`` rows there is a CRC-32 of the values of each column: of the bytes of numbers, of
    the lengths (int32) and then the numbers of lists, and of the list of texts in JSON, as Python's ``json.dumps``
    writes it. There are also the number of rows of each group, and the CRC-32 of the store's info.
    """
    groups = [table.slice(start, group_rows) for start in range(0, table.num_rows, group_rows)]
    found = {
        METADATA_KEY.decode(): zlib.crc32(table.schema.metadata[METADATA_KEY]),
        "rows": [group.num_rows for group in groups],
        "columns": {name: [column_crc32(group[name]) for group in groups] for name in table.column_names},
    }
    return json.dumps(found).encode()


def rank_of_part(path: Path) -> int:
    """Return the rank that wrote or is writing a part."""
    return int(path.name.rpartition("part-" if "part-" in path.name else "rank-")[2].split("-")[0].split(".")[0])
