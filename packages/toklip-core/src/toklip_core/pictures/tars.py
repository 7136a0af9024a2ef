"""Pictures inside a tar, found by reading its headers once and read where they lie: nothing is extracted.

The layout is img2dataset's and WebDataset's: KEY.jpg, and with it KEY.txt and KEY.json. KEY ends at the first dot of a
name, so that KEY.input.jpg has KEY.txt; in a folder of files it ends at the last one.
"""

from __future__ import annotations

import codecs
import json
import posixpath
import tarfile
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import NamedTuple

from toklip_core.files import one_line, refuse_special, replace_lone_surrogates

# A picture is read into memory whole, and a header can claim any size.
_LARGEST_MEMBER = 2**30

#: Bytes of a text beside a picture: one that is longer is no caption.
LARGEST_TEXT = 2**20

# UTF-32's mark begins with UTF-16's.
_ENCODINGS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class Span(NamedTuple):
    """Where a member's bytes lie in a tar."""

    offset: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class TarMember:
    """Where a picture and its texts lie in a tar, or why it cannot be read."""

    span: Span = field(default_factory=Span)
    text: Span | None = None
    facts: Span | None = None
    problem: str = ""

    def data(self, path: Path) -> bytes:
        """Return the bytes of the picture; OSError if the tar ends before them."""
        return _read(path, self.span)

    def caption(self, path: Path) -> str | None:
        """Return KEY.txt, else "caption" of KEY.json; None if there is neither; OSError if the tar ends before it."""
        return caption_of(*(None if span is None else _read(path, span) for span in (self.text, self.facts)))


def caption_of(text: bytes | None, facts: bytes | None) -> str | None:
    """Return the caption that a .txt file or, in its absence, a .json object with "caption" holds.

    A text is UTF-8, or UTF-16 or UTF-32 if it begins with the byte-order mark of one.
    The picture is what matters: what is no text or no JSON, or is longer than ``LARGEST_TEXT``, is no caption.
    """
    text, facts = (None if data is None or len(data) > LARGEST_TEXT else data for data in (text, facts))
    if text is not None and (caption := _decoded(text).strip()):
        return caption
    if facts is None:
        return None
    try:
        found = json.loads(facts)
    except (ValueError, RecursionError):  # [[[[...
        return None
    entry = found.get("caption") if isinstance(found, dict) else None
    if not isinstance(entry, str):
        return None
    return replace_lone_surrogates(entry).strip() or None


def _decoded(text: bytes) -> str:
    encoding = next((name for mark, name in _ENCODINGS.items() if text.startswith(mark)), "utf-8-sig")
    return text.decode(encoding, "replace")


def tar_pictures(path: Path, suffixes: Container[str]) -> Iterator[tuple[str, TarMember]]:
    """Yield (name, member) of each picture of a tar in order. What is wrong comes as a member with a problem.

    A name that climbs out of the tar, a link, and what belongs to the second occurrence of a key are such problems: an
    occurrence ends where a name comes again. If the tar itself is broken, that comes last, with the name "": the
    pictures before the break are good.

    A picture's texts are those of its own name without its suffix, else of its key: what stands before the first dot.
    """
    texts: dict[str, Span | None] = {}
    pictures: dict[str, TarMember] = {}
    again: dict[str, str] = {}
    broken = ""
    try:
        for info in _members(path):
            name = posixpath.normpath(info.name)
            stem, suffix = posixpath.splitext(name)
            key, text = _key(name), stem + suffix.lower()
            if name in pictures or text in texts:
                again.setdefault(key, name)
            if suffix.lower() in suffixes:
                problem = _problem(info)
                if name in pictures:
                    name, problem = _free(name, pictures), f"a second member named {name!r}"
                elif key in again:
                    problem = f"belongs to a second member named {again[key]!r}"
                span = Span() if problem else Span(info.offset_data, info.size)
                pictures[name] = TarMember(span, problem=problem)
            elif suffix.lower() in (".txt", ".json") and key not in again:
                good = info.isreg() and info.size <= LARGEST_TEXT
                texts[text] = Span(info.offset_data, info.size) if good else None
    except Exception as error:  # what tarfile raises on a stranger's headers cannot be listed
        broken = one_line(f"not a tar, or a damaged one: {error}", longest=200)
    for name, member in pictures.items():
        found: tuple[Span | None, Span | None] = (None, None)
        for stem in (_key(name), posixpath.splitext(name)[0]):
            own = texts.get(stem + ".txt"), texts.get(stem + ".json")
            found = own if any(own) else found
        yield name, member if member.problem else TarMember(member.span, *found)
    if broken:
        yield "", TarMember(problem=broken)


def _key(name: str) -> str:
    """Return what stands before the first dot of a member's name, its folders included: WebDataset's rule."""
    folder, base = posixpath.split(name)
    dot = base.find(".", 1)
    return posixpath.join(folder, base if dot < 0 else base[:dot])


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    refuse_special(path)
    if not path.is_file():
        raise OSError("no file, or a link to none")
    with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        for info in tar:
            if info.size < 0:  # the next header would be looked for before this one, again and again
                raise tarfile.ReadError(f"a member of {info.size} bytes")
            yield info
            tar.members.clear()  # type: ignore[attr-defined]  # else it keeps a kilobyte for each
        # tarfile takes a header that it cannot read for the end of the tar, and says nothing.
        file.seek(tar.offset)
        if (header := file.read(tarfile.BLOCKSIZE)).strip(b"\0"):
            what = "no header" if len(header) == tarfile.BLOCKSIZE else "half a header"
            raise tarfile.ReadError(f"{what} at byte {tar.offset}")


def _problem(info: tarfile.TarInfo) -> str:
    name = info.name
    if posixpath.isabs(name) or "\\" in name or ".." in name.split("/"):
        return f"the name {name!r} climbs out of the tar"
    if not info.isreg() or info.issparse():
        return f"the member {name!r} is no plain file"
    if info.size > _LARGEST_MEMBER:
        return f"{info.size} bytes are more than the limit of {_LARGEST_MEMBER}"
    return ""


def _free(name: str, taken: Container[str]) -> str:
    return next(free for n in count(2) if (free := f"{name}#{n}") not in taken)


def _read(path: Path, span: Span) -> bytes:
    with path.open("rb") as file:
        file.seek(span.offset)
        data = file.read(span.size)
    if len(data) < span.size:
        raise OSError(f"the tar ends {span.size - len(data)} bytes before the member does")
    return data
