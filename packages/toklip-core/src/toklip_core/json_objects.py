"""JSON files that hold one object: configs, the settings of a run, its progress."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from toklip_core.messages import one_line
from toklip_core.textfiles import read_text


def read_json_object(path: Path) -> dict[str, Any]:
    """Return what a JSON file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON in UTF-8, or no object; the message names the file.
    """
    text = read_text(path)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        words = one_line(error, longest=120)
        raise ValueError(f"{str(path)!r} is not JSON: {words}; fetch or make it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{str(path)!r} holds a {type(found).__name__}, not an object; fetch or make it again")
    return found
