"""Messages to people: one line, short enough to be read."""

from __future__ import annotations

#: Three lines of a terminal.
LONGEST = 360


def one_line(text: object, *, longest: int = LONGEST) -> str:
    """Return a text, such as an error's, as one line of at most ``longest`` characters; more is cut from the middle."""
    line = " ".join(str(text).split())
    if len(line) <= longest:
        return line
    end = longest // 3
    return f"{line[: longest - end - 5].rstrip()} ... {line[-end:].lstrip()}"
