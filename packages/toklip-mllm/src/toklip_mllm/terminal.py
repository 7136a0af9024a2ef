"""The conversation of ``toklip chat``: messages and commands in, one per line; words and files of pictures out."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import click
from PIL import Image
from toklip_core.files import replace_lone_surrogates

from toklip_mllm.chat import Answer, Chat, DrawnPicture
from toklip_mllm.model import ContextError, read_picture

#: Commands, and what they do.
COMMANDS = {
    "/image PATH": "show a picture with the next message",
    "/clear": "start over, without messages and pictures",
    "/help": "list these commands",
    "/exit": "end the conversation, as the end of the input does",
}


class Terminal:
    """A conversation in a terminal, or in a pipe: a command or a message in each line.

    Words are written to stdout as they are generated, and each drawn picture as the name of its file. What goes wrong
    is one line on stderr, and the conversation goes on after it.

    Args:
        chat: conversation.
        out: folder for drawn pictures, made with the first of them; existing files are never overwritten.
        shown: files and pictures that go with the first message.
        known: what each line of JSON says beside message and answer; None: text instead of JSON. In JSON, errors are
            on stdout, too.
        interactive: whether somebody types; otherwise stdout has the messages, too.
        max_pixels: maximum pixels of a picture that is shown.
        look_at: called with the file and picture of each ``/image``, to warn of it.
    """

    def __init__(
        self,
        chat: Chat,
        out: Path,
        shown: Sequence[tuple[str, Image.Image]],
        *,
        known: dict[str, Any] | None,
        interactive: bool,
        max_pixels: int,
        look_at: Callable[[Sequence[tuple[str, Image.Image]]], None],
    ) -> None:
        self._chat, self._out, self._known = chat, out, known
        self._interactive, self._max_pixels, self._look_at = interactive, max_pixels, look_at
        #: Files that were shown, and pictures that go with the next message.
        self._shown, self._waiting = list[str](), [*shown]
        self._number = 0

    def run(self, lines: Iterable[str]) -> int:
        """Run the conversation until the lines end, or one is ``/exit``; return how many lines were refused."""
        refused = 0
        for line in lines:
            if line == "/exit":
                break
            if self._known is None and not self._interactive:
                click.echo(f"> {replace_lone_surrogates(line)}")
            try:
                self._take(line)
            except (ValueError, OSError) as error:
                refused += 1
                self._refuse(line, f"{error}; /clear starts over" if isinstance(error, ContextError) else str(error))
        return refused

    def _take(self, line: str) -> None:
        """Execute a command, or answer a message."""
        command, _, rest = line.partition(" ")
        if not line.startswith("/"):
            self._answer(replace_lone_surrogates(line))
        elif command == "/image" and rest.strip():
            path = rest.strip()
            named = (path, read_picture(path, 1, max_pixels=self._max_pixels))
            self._look_at([named])
            self._waiting.append(named)
        elif line == "/clear":
            self._chat.clear()
            self._shown, self._waiting = [], []
        elif line == "/help":
            click.echo("\n".join(f"{name:<12} {does}" for name, does in COMMANDS.items()), err=self._known is not None)
        else:
            raise ValueError(f"got {line[:40]!r}, which is not a command; wanted {', '.join(COMMANDS)}, or a message")

    def _answer(self, message: str) -> None:
        """Write the answer to a message; Ctrl-C ends the answer, and the conversation if nobody types."""
        pieces, written = self._chat.say(message, [picture for _, picture in self._waiting]), list[str]()
        try:
            with closing(pieces):
                answer = self._write(pieces, written)
        except KeyboardInterrupt:
            if not self._interactive:
                raise
            click.echo("stopped; the conversation goes on as if you had not asked", err=True)
            return
        self._shown += [file for file, _ in self._waiting]
        self._waiting = []
        if self._known is not None:
            said = {"question": message, "pictures": self._shown, **answer.as_json(), "drawn": written}
            click.echo(json.dumps(self._known | said))

    def _write(self, pieces: Any, written: list[str]) -> Answer:  # noqa: ANN401 - a generator that returns the answer
        """Write pieces of an answer as they come, and the names of its pictures, which are returned in ``written``."""
        begun = False  # whether a line is
        try:
            while True:
                piece = next(pieces)
                if isinstance(piece, DrawnPicture):
                    written.append(str(self._save(piece.image)))
                    piece = ("\n" if begun else "") + f"{written[-1]}\n"
                elif not begun:
                    piece = piece.lstrip()
                if self._known is None and piece:
                    click.echo(piece, nl=False)
                    begun = not piece.endswith("\n")
        except StopIteration as end:
            answer: Answer = end.value
            return answer
        finally:
            if begun:
                click.echo()

    def _save(self, image: Image.Image) -> Path:
        """Write a picture into a new file, drawn-NUMBER.png; return its path."""
        self._out.mkdir(parents=True, exist_ok=True)
        data = io.BytesIO()
        image.save(data, "PNG")
        while True:
            self._number += 1
            path = self._out / f"drawn-{self._number}.png"
            try:
                with path.open("xb") as file:
                    file.write(data.getvalue())
            except FileExistsError:
                continue
            return path

    def _refuse(self, line: str, error: str) -> None:
        if self._known is None:
            click.echo(f"Error: {error}", err=True)
        else:
            click.echo(json.dumps(self._known | {"question": replace_lone_surrogates(line), "error": error}))


def typed_lines(*, interactive: bool) -> Iterable[str]:
    """Yield the lines of stdin without spaces around them, and none that is empty, until its end.

    Bytes that are not UTF-8 are kept, because they may be those of a file's name.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    while True:
        if interactive:
            click.echo("> ", nl=False, err=True)
        try:
            line = input().strip()
        except EOFError:
            if interactive:
                click.echo(err=True)
            return
        if line:
            yield line
