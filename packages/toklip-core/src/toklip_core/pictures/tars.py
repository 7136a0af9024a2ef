"""Pictures in a tar. Its headers are read once, and pictures are read in place; nothing is extracted.

The layout is that of img2dataset and WebDataset: KEY.jpg with KEY.txt and KEY.json. In a tar, KEY ends at the first dot
of a name, so KEY.txt belongs to KEY.input.jpg; in a folder of files it ends at the last dot.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import posixpath
import tarfile
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import NamedTuple

from toklip_core.files import is_file, is_machine_error, named_error, one_line, refuse_special, replace_lone_surrogates

# A picture is read into memory as a whole, and a header can claim any size.
_LARGEST_MEMBER = 2**30

#: Largest number of bytes of a caption's file; a longer one is ignored.
LARGEST_TEXT = 2**20

# UTF-32 comes first, because its mark begins with that of UTF-16.
_ENCODINGS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class Span(NamedTuple):
    """Place of a member's bytes in a tar."""

    offset: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class TarMember:
    """Places of a picture and its texts in a tar, or the reason why it cannot be read."""

    span: Span = field(default_factory=Span)
    text: Span | None = None
    facts: Span | None = None
    problem: str = ""

    def data(self, path: Path) -> bytes:
        """Return the bytes of the picture; OSError if the tar ends before them."""
        return _read(path, self.span)

    def caption(self, path: Path) -> str | None:
        """Return KEY.txt, else "caption" in KEY.json, else None; OSError if the tar ends before its end."""
        return caption_of(*(None if span is None else _read(path, span) for span in (self.text, self.facts)))


def caption_of(text: bytes | None, facts: bytes | None) -> str | None:
    """Return the caption in a .txt file or, without that, in a .json object with "caption"; None if there is none.

    The text is UTF-8, or UTF-16 or UTF-32 if it begins with their byte-order mark. Files that are not text or JSON, or
    longer than ``LARGEST_TEXT``, are ignored, because the picture can be used without them.
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
    """A member of a tar: a picture, a text, or another file, which only shows where a name is repeated."""

    #: Number of the member in the tar.
    place: int
    #: Name; the suffix of a text is in lower case.
    name: str
    #: Place of its bytes; None if it must not be read.
    span: Span | None
    #: Suffix of a text; "" for other members.
    text: str
    is_picture: bool
    problem: str


def tar_pictures(path: Path, suffixes: Container[str]) -> Iterator[tuple[str, TarMember]]:
    """Yield (name, member) of each picture of a tar, in order; a picture that cannot be used has a problem.

    The texts of a picture have its own name without the suffix, or else its key, which ends at the first dot. A
    repeated name begins a second sample of the same key.

    Problems are names that lead out of the tar, links, and pictures that may not belong to the first sample of their
    key. If the tar is damaged, the last member has the name "" and says so; the pictures before the damage are good.
    """
    members: list[_Member] = []
    broken = ""
    try:
        for info in _members(path):
            member = _member(info, len(members), suffixes)
            if member.is_picture or member.text or info.isreg():
                members.append(member)
    except Exception as error:  # tarfile raises too many kinds of errors to list
        if is_machine_error(error):
            raise named_error(error, str(path)) from error
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
    """Yield (place, picture) of the members of one key, in order. Pictures of its first sample have no problem."""
    first: dict[str, int] = {}
    again = next((at for at, member in enumerate(members) if first.setdefault(member.name, at) != at), len(members))
    # The second sample begins after the first mention of every repeated name, at the latest at the first repetition.
    last = max((first[member.name] for member in members[again:] if member.name in first), default=len(members) - 1)
    # Members between the two belong to the first sample if they follow it directly, unless the second one also follows
    # directly: in a.jpg, a.txt, a.png, a.txt, either text may belong to a.png.
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
    """Return whether the member before this one has the same key."""
    return members[at].place == members[at - 1].place + 1


def _stem(member: _Member) -> str:
    return posixpath.splitext(member.name)[0]


def _key(name: str) -> str:
    """Return a member's name up to the first dot of its last part, as in WebDataset."""
    folder, base = posixpath.split(name)
    dot = base.find(".", 1)
    return posixpath.join(folder, base if dot < 0 else base[:dot])


class _Bounded(io.BufferedReader):
    """A file that never makes room for more bytes than it has, whatever size a damaged header claims."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Return at most ``size`` bytes."""
        if size is None or size <= 0:
            return super().read(size)
        return super().read(min(size, max(0, os.fstat(self.fileno()).st_size - self.tell())))


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    refuse_special(path)
    if not is_file(path):
        raise OSError("no file, or a link to none")
    with _Bounded(io.FileIO(path)) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        for info in tar:
            if info.size < 0:  # the next header would be before this one, in an endless loop
                raise tarfile.ReadError(f"a member of {info.size} bytes")
            yield info
            tar.members.clear()  # type: ignore[attr-defined]  # otherwise it keeps a kilobyte per member
        # tarfile silently takes an unreadable header for the end of the tar.
        file.seek(tar.offset)
        if (header := file.read(tarfile.BLOCKSIZE)).strip(b"\0"):
            what = "no header" if len(header) == tarfile.BLOCKSIZE else "half a header"
            raise tarfile.ReadError(f"{what} at byte {tar.offset}")


def _problem(info: tarfile.TarInfo) -> str:
    name = info.name
    if posixpath.isabs(name) or "\\" in name or ".." in name.split("/"):
        return f"the name {name!r} climbs out of the tar"
    if not info.isreg() or info.issparse():
        return f"the member {name!r} is not a plain file"
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
