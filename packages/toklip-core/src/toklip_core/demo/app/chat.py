"""A conversation of `toklip app`: words about pictures, and pictures, of one model that does both or of two models."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from toklip_core.pictures import open_picture, to_picture
from toklip_core.plugins import ChatStarter, PictureInAnswer, PictureModel

#: Form of a text for which the generator draws, if the language model cannot.
_DRAW = re.compile(r"\s*draw\s+(?P<what>\S.*)", re.IGNORECASE | re.DOTALL)


class ChatSession:
    """A conversation, and what the page shows of it.

    Args:
        start: starts a conversation with the language model.
        drawer: model that draws what "draw ..." asks for, where the language model does not; None: there is none.
        folder: where drawn pictures are written, under names that nobody can guess, for the page to show.
        seed: seed of the first picture that is drawn; each further picture adds one.
        max_pixels: maximum pixels of a picture that is read.
    """

    def __init__(
        self, start: ChatStarter, drawer: PictureModel | None, folder: Path, *, seed: int, max_pixels: int
    ) -> None:
        self._chat, self._drawer, self._folder = start(seed), drawer, folder
        self._seed, self._max_pixels = seed, max_pixels
        #: Pictures that the language model reads before the next question.
        self._unread: list[Image.Image] = []
        self._pictures_drawn = 0
        #: Messages as the page shows them: {"role", "content"}, a content being a text or {"path": file}.
        self.messages: list[dict[str, Any]] = []

    def answer(self, text: str, files: Sequence[Path | str] = ()) -> Iterator[None]:
        """Answer a text that comes after picture files; ``messages`` grows between two steps of the iterator.

        An error is shown as an answer, and the conversation goes on after it. If the language model refuses a message,
        its pictures are left out, because those that do not fit would not fit the next one either.
        """
        self.messages += [{"role": "user", "content": {"path": str(file)}} for file in files]
        self.messages += [{"role": "user", "content": text}] if text.strip() else []
        yield
        try:
            self._unread += [open_picture(file, max_pixels=self._max_pixels) for file in files]
            drawing = _DRAW.match(text)
            if drawing and self._drawer is not None and not self._chat.draws:
                image = _draw(self._drawer, drawing["what"], self._seed + self._pictures_drawn)
                self._show(image)
                self._unread.append(image)
            elif text.strip():
                yield from self._say(text)
        except (ValueError, LookupError, OSError) as error:
            self.messages.append({"role": "assistant", "content": f"⚠ {error}"})
        yield

    def _say(self, text: str) -> Iterator[None]:
        try:
            yield from self._pass_on(self._chat.say(text, self._unread))
        except ValueError as error:
            left_out = "; the pictures before this message are left out" * bool(self._unread)
            self._unread = []
            raise ValueError(f"{error}{left_out}") from error
        self._unread = []

    def _pass_on(self, answer: Iterator[str | PictureInAnswer]) -> Iterator[None]:
        words: dict[str, Any] | None = None
        for piece in answer:
            if not isinstance(piece, str):
                self._show(piece.image)
                words = None
            elif words is not None:
                words["content"] += piece
            elif piece.strip():
                words = {"role": "assistant", "content": piece.lstrip()}
                self.messages.append(words)
            yield
        if self.messages[-1]["role"] == "user":
            self.messages.append({"role": "assistant", "content": "(The model says nothing.)"})

    def _show(self, image: Image.Image) -> None:
        file = self._folder / f"{secrets.token_hex(16)}.png"
        image.save(file)
        self._pictures_drawn += 1
        self.messages.append({"role": "assistant", "content": {"path": str(file)}})


def _draw(model: PictureModel, text: str, seed: int) -> Image.Image:
    model.refuse_prompts([text])
    return to_picture(model.pixels(model.draw([text], seeds=[seed]).ids).cpu()[0])
