"""Text and JSON files, and text that files, tokenizers and terminals can hold."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any

from toklip_core.files.special import refuse_special


def replace_lone_surrogates(text: str) -> str:
    r"""Return a text with U+FFFD in place of each lone surrogate; two that belong together become their character.

    JSON can contain lone surrogates, and input that is not UTF-8 arrives with them. Files, tokenizers and columns of
    Arrow refuse them. Call this function where a text enters.

    >>> replace_lone_surrogates("caf\udce9"), replace_lone_surrogates("\ud83d\ude00") == "\U0001f600"
    ('caf\ufffd', True)
    """
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


#: Largest number of characters of a message: three lines of a terminal.
LONGEST = 360


def one_line(text: object, *, longest: int = LONGEST) -> str:
    """Return a text, such as an error's, as one line of at most ``longest`` characters, cut in the middle."""
    line = " ".join(str(text).split())
    if len(line) <= longest:
        return line
    end = longest // 3
    return f"{line[: longest - end - 5].rstrip()} ... {line[-end:].lstrip()}"


@contextmanager
def open_text(path: Path | str, *, newline: str | None = None) -> Iterator[IO[str]]:
    """Open a text file for reading, and skip the byte-order mark of UTF-8 at its beginning.

    Args:
        path: the file.
        newline: argument of ``open``.

    Raises:
        FileNotFoundError: the file is missing.
        OSError: it is a pipe, a socket or a device.
        ValueError: the text is not UTF-8; the message names the file.
    """
    refuse_special(path)
    with Path(path).open(encoding="utf-8-sig", newline=newline) as file:
        try:
            yield file
        except UnicodeDecodeError as error:
            found = f"byte {error.object[error.start]:#04x}, {error.reason}"
            raise ValueError(f"{path} is not UTF-8 text ({found}); save it as UTF-8") from error


def read_text(path: Path | str) -> str:
    """Return the text of a file; for errors see :func:`open_text`."""
    with open_text(path) as file:
        return file.read()


def read_json(path: Path | str) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Return the value of a JSON file; ValueError with the file's name if it is not JSON."""
    return parse_json(read_text(path), str(path))


def read_json_object(path: Path | str) -> dict[str, Any]:
    """Return the object in a JSON file, such as a config; for errors see :func:`read_json`."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{str(path)!r} holds a {type(found).__name__}, not an object; fetch or make it again")
    return found


def json_rows(path: Path | str) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of the entries of a JSON list, counted from 1, or of the lines of a JSONL file.

    The number of a line is its place in the file; empty lines are skipped.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file is not UTF-8 or not JSON; the message names the file, and the line of a JSONL file.
    """
    with open_text(path) as file:
        blank, first = 0, ""
        for first in file:
            if first.strip():
                break
            blank += 1
        if first.lstrip().startswith("["):
            yield from enumerate(parse_json(first + file.read(), str(path)), start=1)
            return
        for number, line in enumerate(chain([first], file), start=blank + 1):
            if line.strip():
                yield number, parse_json(line, f"{path}, row {number}")


def parse_json(text: str, name: str) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Return the value of a JSON text, without lone surrogates; the ValueError begins with ``name``."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # [[[[...
        raise ValueError(f"{name} is not JSON: {error}") from error
    # Text read from UTF-8 has lone surrogates only if it spells them out as escapes.
    return _whole(value) if "\\ud" in text.lower() else value


def _whole(value: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    if isinstance(value, str):
        return replace_lone_surrogates(value)
    if isinstance(value, list):
        return [_whole(one) for one in value]
    if isinstance(value, dict):
        return {replace_lone_surrogates(key): _whole(one) for key, one in value.items()}
    return value
