"""Pictures inside a tar, found by reading its headers once and read where they lie: nothing is extracted.

The layout is img2dataset's and WebDataset's: KEY.jpg, and with it KEY.txt and KEY.json. KEY ends at the first dot of a
name, so that KEY.input.jpg has KEY.txt; in a folder of files it ends at the last one.
"""

from __future__ import annotations

import codecs
import json
import posixpath
import tarfile
from collections.abc import Container, Iterator, Sequence
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


class _Member(NamedTuple):
    """A member of a tar: a picture, a text, or another file, which only tells where a name comes again."""

    #: Which one of them it is.
    place: int
    #: Its suffix is in lower case if it is a text.
    name: str
    #: Where it lies; None if it is not to be read.
    span: Span | None
    #: The suffix of a text, else "".
    text: str
    is_picture: bool
    problem: str


def tar_pictures(path: Path, suffixes: Container[str]) -> Iterator[tuple[str, TarMember]]:
    """Yield (name, member) of each picture of a tar in order. What is wrong comes as a member with a problem.

    A picture's texts are those of its own name without its suffix, else of its key: what stands before the first dot. A
    name that comes again begins a second sample of its key.

    A name that climbs out of the tar, a link, and what is not for certain of the first sample of its key are such
    problems. If the tar itself is broken, that comes last, with the name "": the pictures before the break are good.
    """
    members: list[_Member] = []
    broken = ""
    try:
        for info in _members(path):
            member = _member(info, len(members), suffixes)
            if member.is_picture or member.text or info.isreg():
                members.append(member)
    except Exception as error:  # what tarfile raises on a stranger's headers cannot be listed
        broken = one_line(f"not a tar, or a damaged one: {error}", longest=200)
    own = {_stem(member) for member in members if member.text}
    keys: dict[str, list[_Member]] = {}
    for member in members:
        keys.setdefault(stem if (stem := _stem(member)) in own else _key(member.name), []).append(member)
    found = dict(picture for same in keys.values() for picture in _pictures_of(same))
    yielded: set[str] = set()
    for place in sorted(found):
        name = members[place].name
        name = _free(name, yielded) if name in yielded else name
        yielded.add(name)
        yield name, found[place]
    if broken:
        yield "", TarMember(problem=broken)


def _member(info: tarfile.TarInfo, place: int, suffixes: Container[str]) -> _Member:
    stem, suffix = posixpath.splitext(posixpath.normpath(info.name))
    lower = suffix.lower()
    text = lower if lower in (".txt", ".json") else ""
    is_picture = lower in suffixes
    problem = _problem(info) if is_picture else ""
    good = not problem if is_picture else info.isreg() and info.size <= LARGEST_TEXT
    span = Span(info.offset_data, info.size) if good else None
    return _Member(place, stem + (text or suffix), span, text, is_picture, problem)


def _pictures_of(members: Sequence[_Member]) -> Iterator[tuple[int, TarMember]]:
    """Yield (place, picture) of the members of one key, in order; only the pictures of its first sample are good."""
    first: dict[str, int] = {}
    again = next((at for at, member in enumerate(members) if first.setdefault(member.name, at) != at), len(members))
    # The second sample begins behind every name that comes again, and at the latest where one does.
    last = max((first[member.name] for member in members[again:] if member.name in first), default=len(members) - 1)
    # What stands between the two goes with the first if it follows it at once, unless the second follows at once, too:
    # of a.jpg, a.txt, a.png, a.txt nobody knows whether a.png has the first text or the second.
    end = next((at for at in range(last + 1, again) if not _adjoin(members, at)), again)
    sure = last + 1 if end == again < len(members) and _adjoin(members, again) else end
    texts = {member.text: member.span for member in members[:end] if member.text and member.span}
    unsure = [member.name for member in members[end:again] if member.text and member.span and not texts]
    second = repr(members[again].name) if again < len(members) else ""
    names: set[str] = set()
    for at, (place, name, span, _, is_picture, problem) in enumerate(members):
        if is_picture:
            if name in names:
                problem = f"a second member named {name!r}"
            elif at >= sure and any(member.text for member in members):
                problem = f"belongs to a second member named {second}"
            elif unsure:
                problem = problem or f"{unsure[0]!r} may belong to a second member named {second}"
            names.add(name)
            good = span if span and not problem else None
            yield place, TarMember(good, texts.get(".txt"), texts.get(".json")) if good else TarMember(problem=problem)


def _adjoin(members: Sequence[_Member], at: int) -> bool:
    """Whether no member of another key stands before this one."""
    return members[at].place == members[at - 1].place + 1


def _stem(member: _Member) -> str:
    return posixpath.splitext(member.name)[0]


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
