"""Model folders, damaged in every way that their files can be, which each loader must refuse in one line."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors.torch import save

from tests.support.refusals import LONGEST

#: What a JSON file may hold instead of its object.
NO_OBJECT = {
    "empty": b"",
    "a list": b"[]",
    "null": b"null",
    "a number": b"3",
    "a string": b'"x"',
    "cut": b'{"kind": "x',
    "no UTF-8": b"\xff\xfe\x00",
    "deep": b"[" * 100_000,
    "a number of 5000 digits": b'{"kind": ' + b"9" * 5000 + b"}",
    "nothing in it": b"{}",
}
#: Values of every type, each in the place of each setting of a config; it may be one that the setting can have.
WRONG = [[], {}, "../x", -1, 1.5, float("inf"), 10**30]


def damages(folder: Path) -> Iterator[tuple[str, str, bytes, bool]]:
    """Yield what is done to a file of a folder, in words, the file, its new bytes, and whether it may still load."""
    for path in sorted(folder.iterdir()):
        name, data = path.name, path.read_bytes()
        yield f"{name} is empty", name, b"", False
        yield f"{name} is cut", name, data[: len(data) // 2], False
        yield f"{name} is noise", name, b"\x93\xff" * 100, False
        if path.suffix == ".json":
            yield from ((f"{name} is {what}", name, instead, False) for what, instead in NO_OBJECT.items())
        if path.suffix == ".safetensors":
            yield f"{name} has no tensors", name, save({}), False
        if name == "config.json":
            settings = json.loads(data)
            for key in settings:
                for wrong in WRONG:
                    yield f"{key} = {wrong!r}", name, json.dumps(settings | {key: wrong}).encode(), True


def loaded_after_every_damage(folder: Path, tmp_path: Path, load: Callable[[Path], object]) -> list[str]:
    """Return what went wrong: it loaded, or was refused by a traceback, or by a line that is long or names no file."""
    wrong = []
    for number, (what, name, data, may_load) in enumerate(damages(folder)):
        place = tmp_path / f"damaged-{number}"
        shutil.copytree(folder, place)
        (place / name).write_bytes(data)
        try:
            load(place)
        except (ValueError, LookupError, OSError) as error:
            said = str(error.args[0]) if type(error) is KeyError else str(error)
            if len(said) > LONGEST or said != " ".join(said.split()):
                wrong.append(f"{what}: no short line: {said}")
            if not may_load and str(place) not in said:
                wrong.append(f"{what}: names no file: {said}")
        except Exception as error:
            wrong.append(f"{what}: {type(error).__name__}: {error}")
        else:
            if not may_load:
                wrong.append(f"{what}: it is loaded")
        shutil.rmtree(place)
    return wrong
