"""What every test of bad input asks of a message: one line, short, about something that it names."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

#: Three lines of a terminal.
LONGEST = 3 * 120


def checked(message: str, *about: str) -> str:
    """Return a message that is one line of at most 360 characters and has all of ``about`` in it: a file, a row, ..."""
    assert message and message == " ".join(message.split()), repr(message)
    assert len(message) <= LONGEST, f"{len(message)} characters: {message}"
    missing = [words for words in about if words not in message]
    assert not missing, f"{missing} not in: {message}"
    return message


@contextmanager
def refusing(*about: str, kind: type[Exception] | tuple[type[Exception], ...] = ValueError) -> Iterator[None]:
    """What is done inside raises an error of users, with such a message."""
    with pytest.raises(kind) as raised:
        yield
    checked(str(raised.value), *about)


def refused(result, *about, status=1):
    """A command ended with exactly one such line on stderr, no traceback, nothing on stdout."""
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == status and result.stdout == "", result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("Error: "), result.stderr
    checked(lines[0].removeprefix("Error: "), *about)
