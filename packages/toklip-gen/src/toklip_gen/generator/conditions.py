"""What a picture is to show: classes, or texts by a text encoder, as a generator takes them.

    classes -> values (B,)
    texts -encoder-> features of words -left padding-> values (B, T, width), mask (B, T)

A text ends at the last position before the picture, so that its last word is as near to the first id whatever its
length, as in LlamaGen. Two text encoders: the text tower of the TokLIP, each word's feature before pooling, which needs
no second model; and a T5 of transformers, as LlamaGen's published generators want it (flan-t5-xl, 120 positions).

Letters: B pictures, T positions of the condition, n words of the longest text.
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

from toklip_gen.generator.config import ClassCondition, TextCondition
from toklip_gen.generator.model import Condition
from toklip_gen.generator.t5 import load_t5

_log = logging.getLogger(__name__)

#: The text encoder that is the TokLIP's own.
TOKLIP = "toklip"

#: Names of classes that a message shows.
_SHOWN = 5


class WordEncoder(Protocol):
    """A text encoder."""

    @property
    def width(self) -> int:
        """Numbers of a word."""

    @property
    def limit(self) -> int:
        """Words of a text at most; what is longer is cut."""

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return features (B, n, width) of words, and a mask (B, n): True for words, which come first."""

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Return the words of each text as if none were cut."""

    def to(self, device: torch.device | str) -> object:
        """Bring it to a device."""


class Classes:
    """Classes by their numbers, 0 to ``count`` - 1, or by their names, as a condition."""

    def __init__(self, config: ClassCondition) -> None:
        self._count = config.classes
        #: Names of the classes, in the order of their numbers; empty if the generator has no names.
        self.names = config.names or ()

    def __call__(self, prompts: Sequence[int | str]) -> Condition:
        """Return the condition of classes, given by number or by name.

        Raises:
            ValueError: one is no class of the generator.
        """
        if isinstance(prompts, str):  # which would be read letter by letter
            raise ValueError(f"got one class, {prompts[:50]!r}; wanted a list of classes")
        return Condition(torch.tensor([self.number(prompt) for prompt in prompts], dtype=torch.int64))

    def number(self, prompt: int | str) -> int:
        """Return the number of a class, given by number or by name, _ being a space; ValueError if it is none."""
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
        """Name, in the log, the numbers that are names of other classes: a folder called 3 need not be class 3."""
        for number in numbers:
            if str(number) in self.names and (other := self.number(str(number))) != number:
                _log.warning(
                    "class %d is drawn, which is named %r; the class that is named '%d' is number %d",
                    *(number, self.names[number], number, other),
                )

    def to(self, device: torch.device | str) -> None:
        """Do nothing: there are no weights."""


class Texts:
    """Texts, as a condition of T positions.

    Args:
        config: how many positions, and how wide.
        encoder: gives the features.

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
        #: Texts that were cut so far.
        self.cut = 0

    @torch.no_grad()
    def __call__(self, prompts: Sequence[int | str]) -> Condition:
        """Return the condition of texts: of each the first T words; the first that is cut is named in the log.

        No gradient.

        Raises:
            ValueError: one is no text.
        """
        texts = as_texts(prompts)
        features, mask = self._encoder(texts)
        full = mask.sum(1) >= min(self._length, mask.shape[1])
        cut = self.cut_texts([text for text, is_full in zip(texts, full.tolist(), strict=True) if is_full])
        if cut and not self.cut:
            first = one_line(cut[0], longest=80)
            _log.warning("texts are cut after the first words that the generator reads; the first is %r", first)
        self.cut += len(cut)
        return left_padded(features, mask, self._length)

    def cut_texts(self, texts: Sequence[str]) -> list[str]:
        """Return those of the texts of which the generator reads the first words alone."""
        limit = min(self._length, self._encoder.limit)
        return [text for text, length in zip(texts, self._encoder.lengths(texts), strict=True) if length > limit]

    def refuse_cut(self, texts: Sequence[str]) -> None:
        """ValueError that names the first of some texts that would be cut."""
        if cut := self.cut_texts(texts):
            limit, (length,) = min(self._length, self._encoder.limit), self._encoder.lengths(cut[:1])
            raise ValueError(
                f"the text {one_line(cut[0], longest=80)!r} has {length} tokens, and the generator reads {limit}: it "
                "would be cut; shorten it"
            )

    def to(self, device: torch.device | str) -> None:
        """Bring the encoder to a device."""
        self._encoder.to(device)


def build_conditions(config: ClassCondition | TextCondition, toklip: TokLIP | None = None) -> Classes | Texts:
    """Return what makes a condition of classes, or of texts.

    Args:
        config: of the generator.
        toklip: whose text tower reads texts, if the config says so.

    Raises:
        FileNotFoundError: the T5 is not there, and cannot be downloaded.
        LookupError: transformers is not installed, or the TokLIP has no text tower.
        ValueError: the text encoder is another than the generator was trained with.
    """
    if isinstance(config, ClassCondition):
        return Classes(config)
    if config.encoder != TOKLIP:
        return Texts(config, load_t5(config.encoder, length=config.length))
    if toklip is None or toklip.text is None:
        raise LookupError("the generator reads texts by the text tower of its TokLIP: load that with text=True")
    return Texts(config, TowerWords(toklip.text))


def as_texts(prompts: Sequence[int | str]) -> list[str]:
    """Return prompts as texts, half characters of them replaced.

    Raises:
        ValueError: one is no text.
    """
    if isinstance(prompts, str):  # which would be read letter by letter
        raise ValueError(f"got one text, {prompts[:50]!r}; wanted a list of texts")
    texts = []
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise ValueError(f"got {prompt!r}, but the generator draws texts, not classes; say what it is to draw")
        texts.append(replace_lone_surrogates(prompt))
    return texts


def left_padded(features: Tensor, mask: Tensor, length: int) -> Condition:
    """Return features (B, n, width) of texts as a condition of ``length`` positions: zeros first, then the words.

    Args:
        features: words come first, padding after them.
        mask: (B, n), True for words.
        length: T; of longer texts the first T words are kept.
    """
    features, mask = features[:, :length], mask[:, :length]
    missing = length - mask.shape[1]
    features, mask = F.pad(features, (0, 0, 0, missing)), F.pad(mask, (0, missing))
    words = mask.sum(1, keepdim=True)
    # Position p takes what is at p + words, counted around: T - words pads come to the front.
    places = (torch.arange(length, device=mask.device) + words) % length
    mask = mask.gather(1, places)
    values = features.gather(1, places[:, :, None].expand(-1, -1, features.shape[-1]))
    return Condition(values * mask[:, :, None], mask)


class TowerWords:
    """The text tower of a TokLIP or CLIP: each word's feature before pooling.

    Args:
        tower: in evaluation mode.
    """

    def __init__(self, tower: TextTower) -> None:
        self._tower = tower

    @property
    def width(self) -> int:
        """Width of the tower, not of the joint space."""
        return self._tower.config.width

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """See :meth:`toklip_core.model.TextTower.tokens`."""
        tokens, mask = self._tower.tokens(texts)
        return tokens.float(), mask

    @property
    def limit(self) -> int:
        """The tower's context length."""
        return self._tower.config.context_length

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """See :meth:`toklip_core.model.TextTokenizer.lengths`."""
        assert self._tower.tokenizer is not None  # else no text was read
        return self._tower.tokenizer.lengths(texts)

    def to(self, device: torch.device | str) -> None:
        """Bring the tower to a device."""
        self._tower.to(device)
