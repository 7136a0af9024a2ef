"""Check of the messages of bad input: one short line that names the cause."""

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


def last_error(output: str, *about: str) -> str:
    """Return the last line of an output, the error of a command: it is such a message, and nothing cut it."""
    last = output.strip().splitlines()[-1]
    assert last.startswith("Error: "), output
    assert " ... " not in last, f"the command line cut it: it is too long: {last}"
    return checked(last.removeprefix("Error: "), *about)


def refused(result, *about, status=1):
    """A command ended with exactly one such line on stderr, no traceback, nothing on stdout."""
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == status and result.stdout == "", result.output
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    last_error(result.stderr, *about)
