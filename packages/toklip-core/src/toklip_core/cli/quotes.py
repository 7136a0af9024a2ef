"""Texts that were typed without quotes, so that a shell gave each word on its own. Imports no more than click."""

from __future__ import annotations

import os.path
import re
import shlex
from collections.abc import Sequence

import click

#: A word of a text, and no path: letters, and what stands in or after a word.
_WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*[,;!?]*")
#: Longest text that is repeated.
_LONGEST = 200


def note_single_words(texts: Sequence[str], command: str) -> None:
    """Say on stderr how many texts were read, if there are several and each is a single word.

    Args:
        texts: texts of a command line.
        command: the command, with all that comes before its texts.
    """
    if len(texts) > 1 and not any(" " in text for text in texts):
        whole = " ".join(texts)
        example = shlex.quote(whole) if len(whole) <= _LONGEST else '"TEXT"'
        click.echo(
            f"read {len(texts)} texts of one word each; if they are one text, put it in quotes: {command} {example}",
            err=True,
        )


def refuse_loose_words(files: Sequence[str], example: str) -> None:
    """Raise FileNotFoundError if there are several files, and one is none, but looks like a word of a text.

    Args:
        files: words of a command line that name files.
        example: the command with its text in quotes.
    """
    for file in files if len(files) > 1 else ():
        if _WORD.fullmatch(file) and not os.path.exists(file):  # noqa: PTH110 - Path.exists raises for a very long text
            raise FileNotFoundError(f"{file} is not there; if it is a word of the text, quote the text: {example}")
