"""Conditions of a generator: classes, or texts through a text encoder.

    classes -> values (B,)
    texts -encoder-> features of words -left padding-> values (B, T, width), mask (B, T)

As in LlamaGen, a text ends at the last position before the picture, so that its last word is always next to the first
id. There are two text encoders: the text tower of the TokLIP, with each word's feature before pooling, which needs no
further model; and a T5 of transformers, for LlamaGen's published generators (flan-t5-xl, 120 positions).

Shape letters: B pictures, T positions of the condition, n words of the longest text.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from toklip_core.evaluation import class_name
from toklip_core.files import one_line, replace_lone_surrogates
from toklip_core.model import TextTower, TokLIP
from torch import Tensor

from toklip_gen.generator.config import OF_TOKLIP, ClassCondition, TextCondition
from toklip_gen.generator.model import Condition
from toklip_gen.generator.t5 import load_t5

_log = logging.getLogger(__name__)

#: Number of class names that a message shows.
_SHOWN = 5


class WordEncoder(Protocol):
    """A text encoder."""

    @property
    def width(self) -> int:
        """Width of a word's features."""

    @property
    def limit(self) -> int:
        """Maximum number of words of a text; longer texts are cut."""

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return features (B, n, width) of words, and a mask (B, n) that is True for words, which come first."""

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Return the number of words of each text before cutting."""

    def to(self, device: torch.device | str) -> object:
        """Move the encoder to a device."""


class Classes:
    """Condition of classes, by their numbers, 0 to ``count`` - 1, or by their names."""

    def __init__(self, config: ClassCondition) -> None:
        self._count = config.classes
        #: Names of the classes, in the order of their numbers; empty if the generator has no names.
        self.names = config.names or ()

    def __call__(self, prompts: Sequence[int | str]) -> Condition:
        """Return the condition of classes, given by number or by name.

        Raises:
            ValueError: one is not a class of the generator.
        """
        if isinstance(prompts, str):  # it would be read letter by letter
            raise ValueError(f"got one class, {prompts[:50]!r}; wanted a list of classes")
        return Condition(torch.tensor([self.number(prompt) for prompt in prompts], dtype=torch.int64))

    def number(self, prompt: int | str) -> int:
        """Return the number of a class, given by number or by name, where _ is a space; ValueError if it is unknown."""
        if isinstance(prompt, str) and class_name(prompt) in self.names:
            return self.names.index(class_name(prompt))
        if isinstance(prompt, int) and 0 <= prompt < self._count:
            return int(prompt)
        known = f"numbers from 0 to {self._count - 1}"
        if self.names:
            near = difflib.get_close_matches(str(prompt), self.names, n=_SHOWN) or self.names[:_SHOWN]
            known = f"{', '.join(near)}{', ...' * (len(near) < self._count)}, or {known}"
        raise ValueError(f"got {prompt!r}, but the generator draws classes, not texts: {known}")

    def warn_of_names(self, numbers: Sequence[int]) -> None:
        """Log numbers that are also names of other classes, since a folder called 3 need not be class 3."""
        for number in numbers:
            if str(number) in self.names and (other := self.number(str(number))) != number:
                _log.warning(
                    "class %d is drawn, which is named %r; the class that is named '%d' is number %d",
                    *(number, self.names[number], number, other),
                )

    def to(self, device: torch.device | str) -> None:
        """Do nothing: there are no weights."""


class Texts:
    """Condition of texts, with T positions.

    Args:
        config: number of positions and width.
        encoder: text encoder.

    Raises:
        ValueError: the encoder has another width.
    """

    def __init__(self, config: TextCondition, encoder: WordEncoder) -> None:
        if encoder.width != config.width:
            raise ValueError(
                f"the text encoder {config.encoder!r} has features of width {encoder.width}, but the generator takes "
                f"{config.width}; name the text encoder that it was trained with"
            )
        self._length, self._encoder = config.length, encoder
        #: Number of texts that were cut so far.
        self.cut = 0

    @torch.no_grad()
    def __call__(self, prompts: Sequence[int | str]) -> Condition:
        """Return the condition of texts, with the first T words of each; the first text that is cut is logged.

        No gradient.

        Raises:
            ValueError: one is not text.
        """
        texts = as_texts(prompts)
        features, mask = self._encoder(texts)
        # The padding of some tokenizers is the end of a text, which the mask then leaves out.
        full = mask.sum(1) >= min(self._length, mask.shape[1]) - 1
        cut = self.cut_texts([text for text, is_full in zip(texts, full.tolist(), strict=True) if is_full])
        if cut and not self.cut:
            first = one_line(cut[0], longest=80)
            _log.warning("texts are cut after the first words that the generator reads; the first is %r", first)
        self.cut += len(cut)
        return pad_left(features, mask, self._length)

    def cut_texts(self, texts: Sequence[str]) -> list[str]:
        """Return the texts that the generator would cut."""
        limit = min(self._length, self._encoder.limit)
        return [text for text, length in zip(texts, self._encoder.lengths(texts), strict=True) if length > limit]

    def refuse_cut(self, texts: Sequence[str]) -> None:
        """Raise ValueError, with the first such text, if texts would be cut."""
        if cut := self.cut_texts(texts):
            limit, (length,) = min(self._length, self._encoder.limit), self._encoder.lengths(cut[:1])
            raise ValueError(
                f"the text {one_line(cut[0], longest=80)!r} has {length} tokens, and the generator reads {limit}: it "
                "would be cut; shorten it"
            )

    def refuse_empty(self, texts: Sequence[str]) -> None:
        """Raise ValueError, with the first such text, if the encoder reads nothing of it."""
        nothing, *lengths = self._encoder.lengths(["", *texts])
        for text, length in zip(texts, lengths, strict=True):
            if length == nothing:
                raise ValueError(
                    f"nothing of the text {one_line(text, longest=80)!r} is left for the generator to read, because "
                    "its text encoder drops such characters; describe the picture in words"
                )

    def to(self, device: torch.device | str) -> None:
        """Move the encoder to a device."""
        self._encoder.to(device)


def build_conditions(config: ClassCondition | TextCondition, toklip: TokLIP | None = None) -> Classes | Texts:
    """Return the converter of classes or texts to conditions.

    Args:
        config: condition in the generator's config.
        toklip: TokLIP whose text tower reads texts, if the config says so.

    Raises:
        FileNotFoundError: the T5 is missing and cannot be downloaded.
        LookupError: transformers is not installed, or the TokLIP has no text tower.
        ValueError: the generator was trained with another text encoder.
    """
    if isinstance(config, ClassCondition):
        return Classes(config)
    if config.encoder not in OF_TOKLIP:
        return Texts(config, load_t5(config.encoder, length=config.length))
    if toklip is None or toklip.text is None:
        raise LookupError("the generator reads texts by the text tower of its TokLIP: load that with text=True")
    return Texts(config, TowerWords(toklip.text, embedded=config.encoder == "toklip-words"))


def as_texts(prompts: Sequence[int | str]) -> list[str]:
    """Return prompts as texts without lone surrogates.

    Raises:
        ValueError: a prompt is not text.
    """
    if isinstance(prompts, str):  # it would be read letter by letter
        raise ValueError(f"got one text, {prompts[:50]!r}; wanted a list of texts")
    texts = []
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise ValueError(f"got {prompt!r}, but the generator draws texts, not classes; say what it is to draw")
        texts.append(replace_lone_surrogates(prompt))
    return texts


def pad_left(features: Tensor, mask: Tensor, length: int) -> Condition:
    """Return features of texts as a condition of ``length`` positions, with zeros first, then the words.

    Args:
        features: (B, n, width), with words first and padding after them.
        mask: (B, n), True for words.
        length: number T of positions; only the first T words of longer texts are kept.
    """
    features, mask = features[:, :length], mask[:, :length]
    missing = length - mask.shape[1]
    features, mask = F.pad(features, (0, 0, 0, missing)), F.pad(mask, (0, missing))
    words = mask.sum(1, keepdim=True)
    # Position p takes the entry at p + words, modulo T, which moves the T - words pads to the front.
    places = (torch.arange(length, device=mask.device) + words) % length
    mask = mask.gather(1, places)
    values = features.gather(1, places[:, :, None].expand(-1, -1, features.shape[-1]))
    return Condition(values * mask[:, :, None], mask)


class TowerWords:
    """Word encoder from the text tower of a TokLIP or CLIP: each word's feature before pooling, or its embedding.

    Args:
        tower: text tower in evaluation mode.
        embedded: return the embedding of each word instead, which does not depend on the other words.
    """

    def __init__(self, tower: TextTower, *, embedded: bool = False) -> None:
        self._tower, self._embedded = tower, embedded

    @property
    def width(self) -> int:
        """Width of the tower, not of the joint space."""
        return self._tower.config.width

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """See :meth:`toklip_core.model.TextTower.tokens` and :meth:`toklip_core.model.TextTower.embeddings`."""
        tokens, mask = (self._tower.embeddings if self._embedded else self._tower.tokens)(texts)
        return tokens.float(), mask

    @property
    def limit(self) -> int:
        """Context length of the tower."""
        return self._tower.config.context_length

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """See :meth:`toklip_core.model.TextTokenizer.lengths`."""
        assert self._tower.tokenizer is not None  # otherwise no text could be read
        return self._tower.tokenizer.lengths(texts)

    def to(self, device: torch.device | str) -> None:
        """Move the tower to a device."""
        self._tower.to(device)
