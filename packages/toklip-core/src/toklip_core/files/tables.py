"""Tables that name pictures and their captions: CSV, TSV and JSONL, of which no row is merged, cut or lost.

In a CSV a quote that begins a field encloses it; one that is never closed, or closed in the middle of a field, is an
error, as is a row with another number of fields than the header. In a TSV a row is a line and a quote is a character
like any other, as most TSVs are written; only a field that is quoted as a whole loses its quotes.
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

from toklip_core.files.text import one_line, open_text, parsed, replace_lone_surrogates

#: What ends the name of a table.
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl")

#: Columns of a caption, where nobody has named one: the first that is there.
CAPTION_COLUMNS = ("caption", "text")

#: What the table of an imagefolder is called, and its column of a picture's path.
METADATA = ("metadata.csv", "metadata.jsonl")
FILE_NAME = "file_name"

# A field of a TSV as pandas and spreadsheets write one that holds quotes.
_QUOTED = re.compile(r'"((?:[^"]|"")*)"')

# What ends a row of a CSV; splitlines() knows more.
_LINE_END = re.compile(r"\r\n?|\n")
_SPACE_AT_END = re.compile(r"^\s|\s$")

_log = logging.getLogger(__name__)


def captions_by_picture(
    table: Path, root: Path, *, image: str, caption: str, suffixes: Iterable[str] = (), required: bool = True
) -> dict[str, list[str]]:
    """Return path -> captions of the pictures of a table: rows that name one picture belong together.

    Rows without a caption are left out, as are nulls in a list of captions; a warning counts both.

    Args:
        table: NAME.csv, NAME.tsv or NAME.jsonl.
        root: where paths start from; the result has them joined to it, in the order of their first rows.
        image: column of the path.
        caption: column of a caption, or in JSONL of a list.
        suffixes: of pictures, by which a row is known inside a caption that an open quote has made of it.
        required: whether a table without any caption is an error.

    Raises:
        FileNotFoundError: the table is not there.
        ValueError: it is no such table, a column is missing, a row is malformed, or none has a caption.
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
    """Return path -> captions of the table of an imagefolder, which is read once in a process, unless it changes.

    Paths are in its column ``file_name`` and start from its own folder; captions in the first of ``CAPTION_COLUMNS``
    that it has. A table without such columns has no captions.

    Raises:
        ValueError: it is malformed, as for :func:`captions_by_picture`.
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
    """Return the captions in a cell, none for an empty one; nulls in a list are passed over.

    Raises:
        ValueError: it is neither a text nor a list of texts; the message begins with ``where``.
    """
    texts = value if isinstance(value, list) else [value]
    wrong = [type(text).__name__ for text in texts if not (_is_null(text) or isinstance(text, str))]
    if wrong:
        holds = "a list with " if isinstance(value, list) else ""
        raise ValueError(f"{where} is {holds}a {wrong[0]}; it must be a text, or a list of texts")
    return [whole for text in texts if isinstance(text, str) and (whole := replace_lone_surrogates(text).strip())]


def nulls_in(value: object) -> int:
    """Return the number of nulls in a list of captions; 0 for what is no list."""
    return sum(map(_is_null, value)) if isinstance(value, list) else 0


def warn_of_nulls(count: int, first: str) -> None:
    """Say in the log how many captions are null, and where the first is; nothing if there is none."""
    if count:
        _log.warning(
            "%d caption%s null and left out; the first: %s", count, " is" if count == 1 else "s are", first
        )


def warn_of_several_captions(count: int, where: str) -> None:
    """Say in the log how many pictures of a file have captions that a store does not keep; nothing if none has."""
    if count:
        what = f"1 picture of {where} has" if count == 1 else f"{count} pictures of {where} have"
        _log.warning("%s several captions; a store keeps the first of each", what)


def table_rows(
    table: Path, columns: Sequence[str], *, suffixes: Iterable[str] = ()
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield (line, row) of a table that has these columns, the picture's first; the line is where the row begins.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is no such table, has no such column, or a row is malformed.
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
        if not any(map(str.strip, fields)):  # a blank line, or one of the empty rows at the end of a spreadsheet
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
    """ValueError if a field goes on over the end of a row: one of its lines, read as a row, names a picture.

    ``place`` is the column of the picture. The first line is read as the rest of a row, from the field's own column,
    and the last one as its beginning. A name of no known suffix counts only in a table of such names, where the line
    has the fields of a row and, unlike most sentences, no space beside a comma.
    """
    for column, cell in enumerate(row):
        lines = _LINE_END.split(cell)
        for number, line in enumerate(lines if len(lines) > 1 else ()):
            start = column if number == 0 else 0
            end = column + 1 if number == len(lines) - 1 else len(row)
            # Inside of quotes two quotes are one, so that "a, b" and an empty field, "", are no longer what they were.
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
    """Return the suffix of a path or an address, without what an address is asked."""
    return PurePosixPath(name.strip().split("?")[0]).suffix.lower()


def _unquoted(cell: str) -> str:
    whole = _QUOTED.fullmatch(cell)
    return cell if whole is None else whole[1].replace('""', '"')


def _json_rows(file: Iterable[str], table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(file, start=1):
        if text.strip():
            row = parsed(text, f"{table}, line {line}")
            if not isinstance(row, dict):
                raise ValueError(f"{table}, line {line} is a {type(row).__name__}; it must be an object")
            yield line, row


def _is_null(value: object) -> bool:
    """Whether it is None, or NaN, which is what pandas makes of None."""
    return value is None or (isinstance(value, float) and math.isnan(value))
