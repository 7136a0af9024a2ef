"""Reader of the code blocks in Markdown pages, for the tests that run them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Everything that a reader may copy from. Generated pages hold no block to run.
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("packages/*/README.md")),
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if "/." not in page.relative_to(ROOT).as_posix()),
]

_BLOCK = re.compile(
    r"(?:<!--\s*not run:\s*(?P<reason>[^>]+?)\s*-->\s*\n)?"
    r"^(?P<indent>[ ]*)```(?P<language>\w+)(?P<rest>[^\n]*)\n(?P<code>.*?)^(?P=indent)```[ ]*$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    code: str
    #: From ```` ```toml title="NAME" ````: the block is a file that the next blocks use.
    title: str
    #: From `<!-- not run: REASON -->` on the line before the block; empty for a block that is run.
    reason: str
    line: int


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page that name their language, in order."""
    text = page.read_text()
    found = []
    for match in _BLOCK.finditer(text):
        title = re.search(r'title="([^"]+)"', match["rest"])
        indent = len(match["indent"])
        code = "".join(line[indent:] if line.strip() else line for line in match["code"].splitlines(keepends=True))
        line = text.count("\n", 0, match.start("code"))
        found.append(Block(match["language"], code, title[1] if title else "", match["reason"] or "", line))
    return found


def commands(block: Block) -> str:
    """Return what a shell is given of a block: in a console transcript the lines after `$ `, else all of it."""
    if block.language == "console" and re.search(r"^\$ ", block.code, re.MULTILINE):
        return "\n".join(line[2:] for line in block.code.splitlines() if line.startswith("$ ")) + "\n"
    return block.code


def toklip_words(block: Block) -> list[list[str]]:
    """Return the words of each call of `toklip` in a block of shell commands, without the name itself."""
    calls = []
    for line in commands(block).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while "toklip" in words:
            words = words[words.index("toklip") + 1 :]
            ends = [index for index, word in enumerate(words) if word in ("&&", "||", "|", ";", ">", "2>")]
            calls.append(words[: min(ends, default=len(words))])
    return calls
