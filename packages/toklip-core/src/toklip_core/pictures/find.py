"""Pictures in files, folders, globs, tars, Parquet files and scenes: how they are found and read.

Pixels are (3, H, W), float32, in [-1, 1], from 8-bit values x as x / 127.5 - 1.

    inputs -find_pictures-> sources -share_of_...-> fewer -entries-> entries -image()-> RGB -to_pixels-> pixels
"""

from __future__ import annotations

import glob
import io
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path, PurePosixPath

from PIL import Image

from toklip_core.config import MAX_PIXELS
from toklip_core.files import (
    METADATA,
    is_file,
    is_machine_error,
    metadata_captions,
    refuse_special,
    warn_of_several_captions,
)
from toklip_core.pictures.open import PictureError, open_picture, open_scene
from toklip_core.pictures.parquet_rows import ParquetRow, parquet_pictures
from toklip_core.pictures.tars import LARGEST_TEXT, TarMember, caption_of, tar_pictures
from toklip_core.scenes import Scene, Scenes, parse_scenes

#: Suffixes of pictures in a folder or a tar. Some need a plugin of Pillow (HEIC, JPEG XL); without it, files are
#: reported instead of left out.
PICTURE_SUFFIXES = frozenset(
    ".avif .bmp .gif .heic .heif .j2k .jfif .jp2 .jpe .jpeg .jpg .jxl .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()
)
#: Suffixes of files that contain pictures. In the keys of these pictures, the file is like a folder.
ARCHIVE_SUFFIXES = frozenset([".tar", ".parquet"])
_COMPRESSED_TARS = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")

# With so many tars per rank, each rank takes whole tars, so that no rank reads the headers of all.
_TARS_PER_RANK = 32

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ScenePlace:
    """Place of a scene among scenes; it is drawn when it is read."""

    scenes: Scenes
    index: int

    def scene(self) -> Scene:
        """Return the scene."""
        return self.scenes[self.index]


@dataclass(frozen=True, slots=True)
class InputFile:
    """A picture file, a scene, or an archive, of which every ``step``-th key of ``rank`` is read from ``start`` on."""

    path: Path
    key: str
    #: True for a tar, or a Parquet file with a column of pictures.
    is_archive: bool
    #: Table of the imagefolder with the picture file.
    metadata: Path | None = None
    scene: ScenePlace | None = None
    rank: int = 0
    world_size: int = 1
    start: int = 0
    step: int = 1
    max_pixels: int = MAX_PIXELS


@dataclass(frozen=True, slots=True)
class Entry:
    """A picture that was found but not yet opened."""

    #: Name in a store: a posix path without a leading "/" or "..", the same on every machine.
    key: str
    #: File with the picture: its own, a tar, or a Parquet file; for a scene, the input that names it.
    path: Path
    member: TarMember | ParquetRow | ScenePlace | None = None
    #: Table of the imagefolder with the picture.
    metadata: Path | None = None
    #: Largest width times height that is read.
    max_pixels: int = MAX_PIXELS

    def image(self) -> Image.Image:
        """Read the picture; see :func:`open_picture`."""
        if self.member is None:
            _refuse_no_file(self.path)  # because reading a pipe would wait
            if _is_compressed_tar(self.path):
                raise PictureError("a compressed tar: no single picture can be reached; decompress it to a .tar")
            return open_picture(self.path, max_pixels=self.max_pixels)
        if isinstance(self.member, ScenePlace):
            return open_scene(self.member.scenes, self.member.index, max_pixels=self.max_pixels)
        if self.member.problem:
            raise PictureError(self.member.problem)
        try:
            data = self.member.data(self.path)
        except OSError as error:
            if is_machine_error(error):
                raise
            raise PictureError(str(error)) from error
        return open_picture(io.BytesIO(data), max_pixels=self.max_pixels)

    def caption(self) -> str | None:
        """Return the first of :meth:`captions`; None if there is none."""
        return next(iter(self.captions()), None)

    def captions(self) -> list[str]:
        """Return captions from KEY.txt, else "caption" in KEY.json, else the table of the imagefolder.

        Malformed captions and those above 1 MiB are left out. A caption that exists but cannot be read (no permission,
        a tar cut short) is a PictureError, because the picture would be stored without it.
        """
        if isinstance(self.member, ParquetRow):
            return list(self.member.captions)
        if isinstance(self.member, ScenePlace):
            return list(self.member.scene().captions)
        try:
            if self.member is not None:
                text = self.member.caption(self.path)
            else:
                text = caption_of(*(_bytes_of(self.path.with_suffix(suffix)) for suffix in (".txt", ".json")))
        except OSError as error:
            if is_machine_error(error):
                raise
            raise PictureError(f"its caption cannot be read: {error}") from error
        return self.listed_captions() if text is None else [text]

    def listed_captions(self) -> list[str]:
        """Return its captions in the table of its imagefolder; ValueError if the table is malformed."""
        if self.metadata is None:
            return []
        listed = metadata_captions(self.metadata, PICTURE_SUFFIXES)
        return listed.get(os.path.normpath(self.path), [])


def find_pictures(inputs: Iterable[Path | str], *, max_pixels: int = MAX_PIXELS) -> list[InputFile]:
    """Return the picture files and archives that inputs mean, each once, in a fixed order.

    An input is a file, a folder (searched with all below it; names that begin with a dot are left out), a tar
    (img2dataset's layout: KEY.jpg, KEY.txt, KEY.json), a Parquet file with a column of pictures, a glob of any of
    these, or scenes, which come last: see :func:`toklip_core.scenes.parse_scenes`. A file that is named itself is taken
    whatever its suffix, except the .txt and .json of a picture beside it, and the metadata.csv or metadata.jsonl of an
    imagefolder. In a folder Parquet files are left out: token stores have such, too. ``max_pixels``: see
    :func:`open_picture`.

    Raises:
        FileNotFoundError: an input is not there, or there is no picture in any of them.
        OSError: an input is a pipe, a socket or a device.
        ValueError: two different files have one key, a tar is compressed, or scenes are named wrongly.
    """
    inputs = list(inputs)
    scenes = {str(item): named for item in inputs if (named := parse_scenes(item)) is not None}
    found: dict[str, InputFile] = {}
    seen: set[str] = set()
    tables: dict[tuple[Path, Path], Path | None] = {}
    for path, root in _files([item for item in inputs if str(item) not in scenes]):
        absolute = os.path.abspath(path)  # noqa: PTH100  (a path that keeps its symlinks, but loses "..")
        if absolute in seen:
            continue
        seen.add(absolute)
        key = key_of(path)
        if key in found:
            raise ValueError(f"two pictures have the key {key!r}: {found[key].path} and {path}; encode into two stores")
        if path.suffix.lower() in ARCHIVE_SUFFIXES:
            found[key] = InputFile(path, key, is_archive=True, max_pixels=max_pixels)
        else:
            table = _metadata(path.parent, root, tables)
            found[key] = InputFile(path, key, is_archive=False, metadata=table, max_pixels=max_pixels)
    for text, of_text in scenes.items():
        for index in range(len(of_text)):
            key = of_text.key(index)
            if key in found and found[key].scene is None:
                raise ValueError(f"{found[key].path} has the key of a scene, {key!r}; encode into two stores")
            # A scene that two inputs name is one scene.
            place = ScenePlace(of_text, index)
            found[key] = InputFile(Path(text), key, is_archive=False, scene=place, max_pixels=max_pixels)
    if not found:
        held = next((path for item in inputs for path in sorted(Path(item).glob("**/*.parquet"))), None)
        hint = "" if held is None else f"; name its Parquet files themselves, such as {held}"
        raise FileNotFoundError(f"no picture in {', '.join(map(str, inputs)) or 'nothing'}{hint}")
    _refuse_files_below_tars(found)
    return list(found.values())


def share_of_rank(sources: Iterable[InputFile], rank: int, world_size: int) -> list[InputFile]:
    """Return the pictures that one of ``world_size`` processes encodes, chosen by a hash of the keys.

    A picture's rank does not depend on other pictures, so ranks may list a growing folder at different moments without
    encoding a picture twice or not at all. The pictures of a tar are divided among ranks; from 32 tars per rank on,
    whole tars are. So a list of tars must not grow past that number between two ranks.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"got rank {rank} of {world_size}; ranks go from 0 to one less than their number")
    sources = list(sources)
    by_member = sum(source.is_archive for source in sources) < _TARS_PER_RANK * world_size
    return [
        replace(source, rank=rank, world_size=world_size) if source.is_archive and by_member else source
        for source in sources
        if (source.is_archive and by_member) or _rank_of(source.key, world_size) == rank
    ]


def share_of_worker(sources: Sequence[InputFile], worker: int, count: int) -> list[InputFile]:
    """Return the inputs that one of ``count`` workers reads: every count-th file or tar.

    With fewer tars than workers, each worker reads every count-th picture of each tar.
    """
    tars = [source for source in sources if source.is_archive]
    files = [source for source in sources if not source.is_archive]
    if len(tars) >= count:
        tars = tars[worker::count]
    else:
        tars = [replace(tar, start=worker, step=count) for tar in tars]
    return tars + files[worker::count]


def entries(sources: Iterable[InputFile]) -> Iterator[Entry]:
    """Yield the unopened pictures of inputs; a broken tar is an entry that cannot be read. Nothing is extracted."""
    for source in sources:
        if source.is_archive:
            mine = (entry for entry in _members(source) if _rank_of(entry.key, source.world_size) == source.rank)
            yield from islice(mine, source.start, None, source.step)
        else:
            yield Entry(source.key, source.path, source.scene, source.metadata, source.max_pixels)


def count_of(sources: Iterable[InputFile]) -> int | None:
    """Return the number of pictures in inputs, or None if they have an archive."""
    sources = list(sources)
    return None if any(source.is_archive for source in sources) else len(sources)


def key_of(path: Path | str) -> str:
    """Return the key of a picture: its path as typed, posix, without a leading "/" or ".."; escaped if not UTF-8."""
    normal = Path(os.path.normpath(path))
    parts = [part for part in normal.parts if part not in (normal.anchor, os.pardir)]
    return printable("/".join(parts))


def read_metadata(sources: Iterable[InputFile], *, said: bool = True) -> None:
    """Read the tables of imagefolders, so that forked processes have them; ValueError if one is malformed.

    Args:
        sources: all inputs that are encoded.
        said: log the number of pictures that lose captions in a store, and tables that name no picture.
    """
    of_table: dict[Path, list[InputFile]] = {}
    for source in sources:
        if source.metadata is not None:
            of_table.setdefault(source.metadata, []).append(source)
    for metadata, listed in of_table.items():
        rows = metadata_captions(metadata, PICTURE_SUFFIXES)
        if said:
            if rows and not any(os.path.normpath(source.path) in rows for source in listed):
                first = next(iter(rows))
                _log.warning("no row of %s names one of its pictures; the first names %s", metadata, first)
            warn_of_several_captions(sum(map(_has_several_captions, listed)), str(metadata))


def _has_several_captions(source: InputFile) -> bool:
    entry = Entry(source.key, source.path, metadata=source.metadata)
    try:
        return len(entry.listed_captions()) > 1 and len(entry.captions()) > 1
    except PictureError:  # an unreadable caption is reported when the picture is encoded
        return False


def _members(source: InputFile) -> Iterator[Entry]:
    if source.path.suffix.lower() == ".parquet":
        for name, row in parquet_pictures(source.path, said=source.start == source.rank == 0):
            yield Entry(f"{source.key}/{name}" if name else source.key, source.path, row, max_pixels=source.max_pixels)
        return
    for name, member in tar_pictures(source.path, PICTURE_SUFFIXES):
        # A name with ".." is reported as it is; without the ".." it could be another picture's key.
        inside = printable(name) if member.problem else key_of(name)
        yield Entry(f"{source.key}/{inside}" if name else source.key, source.path, member, max_pixels=source.max_pixels)


def _rank_of(key: str, world_size: int) -> int:
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest()) % world_size


def _refuse_no_file(path: Path) -> None:
    try:
        if is_file(path):
            return
        refuse_special(path)
    except OSError as error:
        if is_machine_error(error):
            raise
        raise PictureError(error.strerror or str(error)) from error
    raise PictureError("no file, or a link to none")


def printable(name: str) -> str:
    """Return a name whose bytes that are not UTF-8 are written as escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _bytes_of(path: Path) -> bytes | None:
    if not is_file(path):
        return None
    with path.open("rb") as file:
        return file.read(LARGEST_TEXT + 1)


def _metadata(folder: Path, root: Path, known: dict[tuple[Path, Path], Path | None]) -> Path | None:
    """Return the nearest table of an imagefolder in a folder, or above it up to ``root``."""
    if (folder, root) not in known:
        here = next((path for name in METADATA if is_file(path := folder / name)), None)
        above = None if here or folder == root or folder == folder.parent else _metadata(folder.parent, root, known)
        known[folder, root] = here or above
    return known[folder, root]


def _files(inputs: Sequence[Path | str]) -> Iterator[tuple[Path, Path]]:
    """Yield files, with the folders that they were found in."""
    named = [path for item in inputs for path in _expanded(item)]
    stems = {path.with_suffix("") for path in named if path.suffix.lower() in PICTURE_SUFFIXES}
    for path in named:
        listed = path.name in METADATA and any(stem.parent == path.parent for stem in stems)
        if path.is_dir():
            yield from ((found, path) for found in _walk(path))
        elif not listed and not (path.suffix.lower() in (".txt", ".json") and path.with_suffix("") in stems):
            if _is_compressed_tar(path):
                raise ValueError(f"{path} is compressed: no single picture can be reached; decompress it to a .tar")
            refuse_special(path)
            yield path, path.parent


def _expanded(item: Path | str) -> list[Path]:
    if str(item) == "":  # such as of an unset variable of a shell; Path("") is the current folder
        raise FileNotFoundError("got an empty name of a picture or folder; write . for the current folder")
    path = Path(item)
    if path.exists():  # checked first, because the name of a file may have brackets
        return [path]
    matches = [Path(match) for match in sorted(glob.glob(str(item), recursive=True))]  # noqa: PTH207  (Path.glob takes no absolute one)
    if not matches:
        problem = "no file matches" if glob.has_magic(str(item)) else "there is no file or folder"
        raise FileNotFoundError(f"{problem} {str(item)!r}{_hint(str(item))}")
    return matches


def _hint(item: str) -> str:
    """Return what to write instead of a name in WebDataset's notation."""
    if re.match(r"[a-z0-9]+://|pipe:", item):
        return "; only local files are read, so download them, or mount the bucket"
    if re.search(r"\{[^{}]*(\.\.|,)[^{}]*\}", item):
        return "; braces are not expanded in quotes: write a glob, such as 'shards/*.tar'"
    return ""


def _walk(folder: Path) -> Iterator[Path]:
    visited: set[str] = set()
    for here, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        real = os.path.realpath(here)
        if real in visited:  # a link back to a visited folder
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(here, name)
            suffix = path.suffix.lower()
            wanted = suffix in PICTURE_SUFFIXES or suffix == ".tar" or _is_compressed_tar(path)
            if wanted and not name.startswith("."):
                yield path


def _is_compressed_tar(path: Path) -> bool:
    return path.name.lower().endswith(_COMPRESSED_TARS)


def _raise(error: OSError) -> None:
    raise error


def _refuse_files_below_tars(found: dict[str, InputFile]) -> None:
    tars = {key for key, source in found.items() if source.is_archive}
    for key in found if tars else ():
        for parent in PurePosixPath(key).parents:
            if str(parent) in tars:
                tar = found[str(parent)].path
                raise ValueError(f"the keys of {found[key].path} and of {tar} overlap; encode into two stores")
