"""Scenes as an input: ``scenes:held-out?count=256`` can be given wherever a folder of pictures can."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from toklip_core.config import LARGEST_COUNT, LARGEST_SEED, LARGEST_SIDE
from toklip_core.files import one_line
from toklip_core.scenes.draws import SPLITS
from toklip_core.scenes.picture import BACKGROUNDS

if TYPE_CHECKING:
    from toklip_core.scenes import Scenes

#: Prefix of such an input. For a file whose name begins like that, type a path such as ``./scenes:...``.
SCHEME = "scenes:"

_RANGES = {
    "count": (1, LARGEST_COUNT),
    "seed": (0, LARGEST_SEED),
    "size": (8, LARGEST_SIDE),
    "objects": (1, 3),
    "places": (0, 1),
}
_COUNT = 100


def parse_scenes(item: Path | str) -> Scenes | None:
    """Return the scenes of an input, or None if it names files.

    The form is ``scenes:SPLIT?NAME=VALUE&...`` with the options of ``toklip scenes``, and their defaults: count (100),
    seed (0), size in pixels (64), objects (1 to 3; random by default), background (random by default) and places (0, or
    1 for captions that say where each object is). The input equals the folder that ``toklip scenes`` writes with these
    options.

    Raises:
        ValueError: the input begins with "scenes:" and has another form, or a value is out of its range.

    >>> parse_scenes("scenes:held-out?count=256&objects=1").split
    'held-out'
    >>> parse_scenes("photos") is None
    True
    """
    from toklip_core.scenes import Scenes

    text = str(item)
    if not text.startswith(SCHEME):
        return None
    split, _, query = text.removeprefix(SCHEME).partition("?")
    values: dict[str, Any] = {"count": _COUNT}
    given = [pair.partition("=") for pair in query.split("&")] if query else []
    problem = "" if split in SPLITS else f"no split {one_line(repr(split), longest=20)}"
    for name, _, value in given:
        low, high = _RANGES.get(name, (0, -1))
        if name == "background" and value in BACKGROUNDS:
            values[name] = value
        elif value.isascii() and value.isdecimal() and len(value) < 20 and low <= int(value) <= high:
            values[name] = bool(int(value)) if name == "places" else int(value)
        else:
            problem = problem or f"{one_line(repr(f'{name}={value}'), longest=30)} does not fit"
    if len({name for name, _, _ in given}) < len(given):
        problem = problem or "a name occurs twice"
    if problem:
        raise ValueError(
            f"got {one_line(repr(text), longest=60)}: {problem}; wanted scenes:SPLIT?count=N, the split being "
            f"{', '.join(SPLITS)}; also &seed=N, &size=PIXELS from 8, &objects=1 to 3, &background="
            f"{'|'.join(BACKGROUNDS)}, &places=1"
        )
    return Scenes(split=split, **values)
