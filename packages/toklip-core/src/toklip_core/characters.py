"""Text as a file, a tokenizer and a terminal can hold it."""

from __future__ import annotations


def replace_lone_surrogates(text: str) -> str:
    r"""Return a text with U+FFFD in place of each half of a character; two halves in a row become their character.

    JSON can spell half a character, and what is typed in another encoding than UTF-8 arrives as halves. No file, no
    tokenizer and no column of Arrow takes one. Call it where a text enters.

    >>> replace_lone_surrogates("caf\udce9"), replace_lone_surrogates("\ud83d\ude00") == "\U0001f600"
    ('caf\ufffd', True)
    """
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
