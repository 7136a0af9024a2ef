"""Tables of pictures and captions in CSV, TSV and JSONL; no row is merged, cut or lost.

In a CSV a quote at the beginning of a field encloses it. It is an error if the quote is never closed, or closed in the
middle of a field, or if a row and the header differ in their number of fields. In a TSV every line is a row, and a
quote is an ordinary character; only a field that is quoted as a whole loses its quotes.
"""

from __future__ import annotations

import csv
import logging
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from toklip_core.files.text import one_line, open_text, parse_json, replace_lone_surrogates

#: Suffixes of tables.
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl")

#: Columns of captions if no other is named; the first that exists is used.
CAPTION_COLUMNS = ("caption", "text")

#: Names of an imagefolder's table, and its column with the path of a picture.
METADATA = ("metadata.csv", "metadata.jsonl")
FILE_NAME = "file_name"

# A field of a TSV that contains quotes, as pandas and spreadsheets write it.
_QUOTED = re.compile(r'"((?:[^"]|"")*)"')

# Line ends of a CSV; splitlines() knows more of them.
_LINE_END = re.compile(r"\r\n?|\n")
_SPACE_AT_END = re.compile(r"^\s|\s$")

_log = logging.getLogger(__name__)


def captions_by_picture(
    table: Path, root: Path, *, image: str, caption: str, suffixes: Iterable[str] = (), required: bool = True
) -> dict[str, list[str]]:
    """Return path -> captions of the pictures of a table; rows that name the same picture are merged.

    Rows without a caption and nulls in lists of captions are left out; a warning counts them.

    Args:
        table: NAME.csv, NAME.tsv or NAME.jsonl.
        root: folder that paths are relative to. The result has full paths, in the order of their first rows.
        image: column with the path.
        caption: column with a caption, or in JSONL also with a list of captions.
        suffixes: suffixes of pictures, which reveal rows that an open quote has swallowed into a caption.
        required: whether a table without any caption is an error.

    Raises:
        FileNotFoundError: the table is missing.
        ValueError: the file has another suffix, a column is missing, a row is malformed, or no row has a caption.
    """
    found: dict[str, list[str]] = {}
    rows = left_out = nulls = 0
    first_null = ""
    for line, row in table_rows(table, (image, caption), suffixes=suffixes):
        rows += 1
        where = f"{table}, line {line}"
        if not isinstance(path := row[image], str) or not path:
            raise ValueError(f"{where}: {image!r} is {one_line(repr(path), longest=120)}; it must be a path")
        if texts := captions_in(row[caption], f"{where}: {caption!r}"):
            found.setdefault(os.path.normpath(root / path), []).extend(texts)
        left_out += not texts
        if more := nulls_in(row[caption]):
            nulls, first_null = nulls + more, first_null or where
    if not found and required:
        raise ValueError(f"none of {left_out} rows of {table} has a caption in {caption!r}")
    if left_out:
        _log.warning("%d of %d rows of %s have no caption", left_out, rows, table)
    warn_of_nulls(nulls, first_null)
    return found


def metadata_captions(metadata: Path, suffixes: frozenset[str] = frozenset()) -> Mapping[str, list[str]]:
    """Return path -> captions from the table of an imagefolder. It is read again only if the file changes.

    Paths are in the column ``file_name``, relative to the table's folder; captions are in the first existing column of
    ``CAPTION_COLUMNS``. A table without such columns has no captions.

    Raises:
        ValueError: the table is malformed, see :func:`captions_by_picture`.
    """
    facts = metadata.stat()
    return _metadata_captions(metadata, suffixes, facts.st_mtime_ns, facts.st_size)


@cache
def _metadata_captions(metadata: Path, suffixes: frozenset[str], *changed: int) -> Mapping[str, list[str]]:
    _, row = next(table_rows(metadata, ()), (0, {}))
    caption = next((name for name in CAPTION_COLUMNS if name in row), None)
    if FILE_NAME not in row or caption is None:
        return {}
    return captions_by_picture(
        metadata, metadata.parent, image=FILE_NAME, caption=caption, suffixes=suffixes, required=False
    )


def captions_in(value: object, where: str) -> list[str]:
    """Return the captions in a cell; an empty cell has none, and nulls in a list are skipped.

    Raises:
        ValueError: the cell is neither a text nor a list of texts; the message begins with ``where``.
    """
    texts = value if isinstance(value, list) else [value]
    wrong = [type(text).__name__ for text in texts if not (_is_null(text) or isinstance(text, str))]
    if wrong:
        holds = "a list with " if isinstance(value, list) else ""
        raise ValueError(f"{where} is {holds}a {wrong[0]}; it must be a text, or a list of texts")
    return [whole for text in texts if isinstance(text, str) and (whole := replace_lone_surrogates(text).strip())]


def nulls_in(value: object) -> int:
    """Return the number of nulls in a list of captions; 0 for any other value."""
    return sum(map(_is_null, value)) if isinstance(value, list) else 0


def warn_of_nulls(count: int, first: str) -> None:
    """Log how many captions are null, and where the first one is, if there are any."""
    if count:
        _log.warning(
            "%d caption%s null and left out; the first: %s", count, " is" if count == 1 else "s are", first
        )


def warn_of_several_captions(count: int, where: str) -> None:
    """Log how many pictures of a file have further captions, which a store does not keep, if there are any."""
    if count:
        what = f"1 picture of {where} has" if count == 1 else f"{count} pictures of {where} have"
        _log.warning("%s several captions; a store keeps the first of each", what)


def table_rows(
    table: Path, columns: Sequence[str], *, suffixes: Iterable[str] = ()
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield (line, row) of a table; the line is the number of the row's first line.

    Args:
        table: NAME.csv, NAME.tsv or NAME.jsonl.
        columns: columns that the table must have, that of the picture first.
        suffixes: suffixes of pictures, as for :func:`captions_by_picture`.

    Raises:
        FileNotFoundError: the table is missing.
        ValueError: the file has another suffix, a column is missing, or a row is malformed.
    """
    kind = table.suffix.lower()
    if kind not in TABLE_SUFFIXES:
        raise ValueError(f"got the table {table}; known are {', '.join(TABLE_SUFFIXES)}")
    with open_text(table, newline="") as file:
        rows = _json_rows(file, table) if kind == ".jsonl" else _split_rows(file, table, columns, tuple(suffixes))
        for number, (line, row) in enumerate(rows):
            for column in columns:
                if column not in row and number == 0:
                    has = one_line(", ".join(row), longest=120)
                    raise ValueError(f"{table} has no column {column!r}; its columns: {has}")
            yield line, dict.fromkeys(columns) | row


def _split_rows(
    file: Iterable[str], table: Path, columns: Sequence[str], suffixes: tuple[str, ...]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (first line, row) of a CSV or TSV; each row has as many fields as the header."""
    tabs = table.suffix.lower() == ".tsv"
    reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(file, strict=True)
    hint = "write a row into one line, with a tab between two fields"
    if not tabs:
        hint = "put a field with a comma, a quote or a line break in it into quotes, and double its own quotes"
    header: list[str] = []
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            lines = f"lines {line} to {reader.line_num}" if reader.line_num > line else f"line {line}"
            problem = "a quote is opened and never closed" if "end of data" in str(error) else str(error)
            raise ValueError(f"{table}, {lines}: {problem}; {hint}") from error
        if fields is None:
            return
        if not any(map(str.strip, fields)):  # a blank line, or an empty row at the end of a spreadsheet
            continue
        fields = list(map(_unquoted, fields)) if tabs else fields
        if not header:
            header = fields
            if twice := next((column for column in columns if header.count(column) > 1), None):
                raise ValueError(f"{table} has the column {twice!r} twice; give one of them another name")
        elif len(fields) != len(header):
            raise ValueError(f"{table}, line {line} has {len(fields)} fields, and the header {len(header)}; {hint}")
        else:
            if not tabs and columns and columns[0] in header:
                _refuse_swallowed_rows(fields, header.index(columns[0]), suffixes, f"{table}, line {line}")
            yield line, dict(zip(header, fields, strict=True))


def _refuse_swallowed_rows(row: Sequence[str], place: int, suffixes: tuple[str, ...], where: str) -> None:
    """Raise ValueError if a field contains further rows, that is, if one of its lines, read as a row, names a picture.

    ``place`` is the column of the picture. The first line is read as the rest of a row, from the field's own column
    on, and the last one as the beginning of a row. A name with an unknown suffix counts only if the table has such
    names and the line has as many fields as a row and, unlike most sentences, no space beside a comma.
    """
    for column, cell in enumerate(row):
        lines = _LINE_END.split(cell)
        for number, line in enumerate(lines if len(lines) > 1 else ()):
            start = column if number == 0 else 0
            end = column + 1 if number == len(lines) - 1 else len(row)
            # Inside quotes two quotes stand for one, which has changed fields such as "a, b" and ""; try both readings.
            for fields in (line.split(","), next(csv.reader([line]))) if start <= place < end else ():
                is_row = len(fields) == end - start > 1 and not any(map(_SPACE_AT_END.search, fields))
                names = len(fields) >= end - start and _suffix(fields[place - start]) in suffixes
                if names or (is_row and _suffix(row[place]) not in suffixes):
                    raise ValueError(
                        f"{where}: a quote is opened and not closed {'before' if number else 'in'} the row "
                        f"{line[:40]!r}; close it, or double it inside its field; write a text that looks so into one "
                        "line"
                    )


def _suffix(name: str) -> str:
    """Return the suffix of a path or an address, without the query of an address."""
    return PurePosixPath(name.strip().split("?")[0]).suffix.lower()


def _unquoted(cell: str) -> str:
    whole = _QUOTED.fullmatch(cell)
    return cell if whole is None else whole[1].replace('""', '"')


def _json_rows(file: Iterable[str], table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(file, start=1):
        if text.strip():
            row = parse_json(text, f"{table}, line {line}")
            if not isinstance(row, dict):
                raise ValueError(f"{table}, line {line} is a {type(row).__name__}; it must be an object")
            yield line, row


def _is_null(value: object) -> bool:
    """Return whether a value is None, or NaN, which pandas writes for None."""
    return value is None or (isinstance(value, float) and math.isnan(value))
