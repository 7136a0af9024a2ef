"""Scenes as files: pictures with captions beside them, in the layout that ``toklip encode`` reads."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from toklip_core.files import replacing, write_text

if TYPE_CHECKING:
    from toklip_core.scenes import Scene

#: File with a line per picture: file, captions, objects, label, questions. It is written last, so it marks a complete
#: folder.
CAPTIONS_FILE = "captions.jsonl"


def write_scenes(scenes: Iterable[Scene], out: Path | str, *, progress: bool = False) -> None:
    """Write scenes into a folder: ``000000.png`` beside ``000000.txt`` (the caption), ..., and ``captions.jsonl``.

    If it is stopped or killed, the files with these names are whole, and ``captions.jsonl`` is missing.

    Args:
        scenes: scenes such as ``Scenes(1000, split="validation")``.
        out: folder to write into; it is created if missing.
        progress: show a progress bar on stderr if that is a terminal.

    Raises:
        FileExistsError: the folder is not empty; nothing is written.
        OSError: the folder cannot be written.

    >>> from tempfile import mkdtemp
    >>> from toklip_core.scenes import Scenes
    >>> folder = mkdtemp()
    >>> write_scenes(Scenes(2), folder)
    >>> sorted(path.name for path in Path(folder).iterdir())
    ['000000.png', '000000.txt', '000001.png', '000001.txt', 'captions.jsonl']
    """
    from PIL import Image
    from tqdm import tqdm

    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError(f"the folder {folder} is not empty; name another one, or empty it")
    lines: list[str] = []
    for scene in tqdm(scenes, unit=" pictures", disable=None if progress else True):
        name = f"{scene.index:06d}"
        with replacing(folder / f"{name}.png") as beside:
            Image.fromarray(scene.rgb).save(beside, "PNG", compress_level=1)
        write_text(folder / f"{name}.txt", f"{scene.caption}\n")
        lines.append(json.dumps({"file": f"{name}.png"} | _words(scene)))
    write_text(folder / CAPTIONS_FILE, "".join(f"{line}\n" for line in lines))


def _words(scene: Scene) -> dict[str, object]:
    names = ("shape", "colour", "size", "x", "y", "radius")
    return {
        "caption": scene.caption,
        "captions": scene.captions,
        "objects": [{name: getattr(thing, name) for name in names} for thing in scene.objects],
        "background": scene.background.kind,
        "label": scene.label,
        "questions": [question._asdict() for question in scene.questions],
    }
