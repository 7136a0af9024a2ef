"""A language model with an image head as a model of ids, which :class:`toklip_core.drawing.Sampler` draws with.

A picture has two rows in the language model's cache with guidance: its prompt, and the begin token alone, whose state
is the condition of a dropped prompt. Both read the same picture. The semantic encoder has one row of each picture.

Shape letters: B pictures, R rows (B, or 2 B with the rows without the prompt last), L tokens of a prompt, M of them
that are not in the cache yet, n positions of the picture so far or of a step, N positions of a picture, Q ids of a
position, D width of the language model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from toklip_core.drawing import Drawing, IdLevels
from toklip_core.model import FeatureStream
from torch import Tensor

from toklip_mllm.model.config import TokLIPLMConfig
from toklip_mllm.model.image_head import ImageHead
from toklip_mllm.model.vision import PictureEncoder


class ReadingModel(Protocol):
    """What a predictor needs of a :class:`toklip_mllm.model.TokLIPForConditionalGeneration`."""

    config: TokLIPLMConfig
    vision: PictureEncoder

    @property
    def device(self) -> torch.device:
        """Device that the model is on."""

    @property
    def id_levels(self) -> IdLevels:
        """Levels in which the ids of a position are predicted."""

    def required_head(self) -> ImageHead:
        """Return the image head; ValueError if the model has none."""

    def connect(self, features: Tensor) -> Tensor:
        """Return features (..., F), inputs of the connector, in the language model's embedding space, (..., D)."""

    def read_embeds(self, embeds: Tensor, mask: Tensor, cache: Any) -> tuple[Tensor, Any]:  # noqa: ANN401
        """Read embeddings (R, M, D) after a cache; return their states (R, M, D), and the cache."""


class PicturePrompt(NamedTuple):
    """Prompts of B pictures, each of which ends in the begin token."""

    #: (B, M, D), embeddings of the tokens that the cache does not hold; M is at least 1.
    embeds: Tensor
    #: (B, L), 0 where a prompt is padded on the left.
    mask: Tensor
    #: Keys and values of the first L - M tokens; None if M = L. It is changed.
    cache: Any = None


@dataclass
class PictureCache:
    """Caches of language model and semantic encoder for the pictures that are being drawn."""

    stream: FeatureStream
    #: Keys and values of the language model, R rows.
    cache: Any
    #: (R, L + n), 0 where a row does not read.
    mask: Tensor
    #: (B, n, Q), the ids that it holds.
    ids: Tensor
    #: (B, n, D), these ids in the language model's embedding space.
    embeds: Tensor

    def keep(self, rows: int) -> None:
        """Drop all rows of the language model except the first ``rows``."""
        if rows == len(self.mask):
            return  # the cache would be copied
        self.cache.batch_select_indices(torch.arange(rows, device=self.mask.device))
        self.mask = self.mask[:rows]

    def cut(self, positions: int) -> None:
        """Forget all positions of the pictures but the first ``positions``."""
        if more := self.ids.shape[1] - positions:
            self.cache.crop(-more)
            self.mask, self.ids, self.embeds = self.mask[:, :-more], self.ids[:, :positions], self.embeds[:, :positions]
            self.stream.cut(positions)

    def tensors(self) -> list[Tensor]:
        """Return none, because the language model's cache grows and no step is compiled."""
        return []


class PicturePredictor:
    """Language model with an image head, as a sampler draws with it; see :class:`toklip_core.drawing.NextIdModel`.

    Args:
        model: model in evaluation mode.

    Raises:
        ValueError: the model has no image head.
    """

    def __init__(self, model: ReadingModel) -> None:
        self.model = model
        self._head = model.required_head()
        #: Cache of the pictures that are being drawn.
        self._read: PictureCache | None = None

    @property
    def levels(self) -> IdLevels:
        """Levels in which the ids of a position are predicted."""
        return self.model.id_levels

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the ids of a picture."""
        rows, columns, _ = self.model.vision.ids_shape
        return rows, columns

    @property
    def drawing(self) -> Drawing:
        """Settings that the model's config recommends."""
        return self.model.config.head_config.drawing

    @property
    def device(self) -> torch.device:
        """Device that the model is on."""
        return self.model.device

    def count(self, condition: PicturePrompt) -> int:
        """Return the number B of pictures of prompts."""
        return len(condition.mask)

    def prefill(
        self, condition: PicturePrompt, ids: Tensor, *, guided: bool, steps: int
    ) -> tuple[Tensor, PictureCache]:
        """Read the prompts and the ids (B, n, Q) of n positions; return the states (R, D) of position n, and the cache.

        With guidance, the cache that a prompt brings gets a second row of each picture.
        """
        embeds, mask, cache = condition
        features, stream = self.model.vision.stream(ids)
        own = self.model.connect(features).to(embeds)
        embeds = torch.cat([embeds, own], dim=1)
        if guided:
            alone = torch.zeros_like(mask)
            alone[:, -1] = 1
            embeds, mask = embeds.repeat(2, 1, 1), torch.cat([mask, alone])
            if cache is not None:
                cache.batch_select_indices(torch.arange(len(alone), device=mask.device).repeat(2))
        mask = torch.cat([mask, mask.new_ones(len(mask), ids.shape[1])], dim=1)
        states, cache = self.model.read_embeds(embeds, mask, cache)
        if record := getattr(cache, "activate_past_recording", None):  # transformers 5.24 has it
            record()  # attention in windows keeps what drafts push out of them, until it is cut
        self._read = PictureCache(stream, cache, mask, ids, own)
        return states[:, -1], self._read

    def step(self, ids: Tensor, cache: PictureCache) -> Tensor:
        """Read the ids (B, n, Q) of the next n positions; return the states (R, n, D) of those after each of them."""
        rows = len(cache.mask)
        own = self.model.connect(cache.stream.step(ids)).to(cache.embeds)
        cache.mask = torch.cat([cache.mask, cache.mask.new_ones(rows, ids.shape[1])], dim=1)
        cache.ids, cache.embeds = torch.cat([cache.ids, ids], dim=1), torch.cat([cache.embeds, own], dim=1)
        states, cache.cache = self.model.read_embeds(own.repeat(rows // len(ids), 1, 1), cache.mask, cache.cache)
        return states

    def logits(self, states: Tensor, before: Tensor, cache: PictureCache) -> Tensor:
        """Return the logits (M, K_q), float32, of level q for states (M, D) and the levels before it, (M, q)."""
        return self._head.logits(states, before)

    def forget(self) -> None:
        """Forget what a drawing has read, also one that ended with an error."""
        self._read = None

    def finish(self, condition: PicturePrompt, ids: Tensor, *, last: bool = True) -> PictureCache:
        """Read the rest of drawn pictures (B, N, Q); return the cache of prompts and whole pictures, B rows.

        Without ``last``, the language model does not read the last position, whose state the next word depends on.
        """
        read = self._read
        if read is None:  # the prefix was the whole picture
            _, read = self.prefill(condition, ids[:, :-1], guided=False, steps=0)
        if len(read.mask) > len(ids):
            read.keep(len(ids))
        held = min(read.ids.shape[1], ids.shape[1] - 1)
        same = (read.ids[:, :held] == ids[:, :held]).all(-1).all(0)  # the last ids that it holds may be drafts
        read.cut(int(same.long().cumprod(0).sum()))
        held = read.ids.shape[1]
        if last:
            self.step(ids[:, held:], read)
        else:
            if held < ids.shape[1] - 1:
                self.step(ids[:, held:-1], read)
            own = self.model.connect(read.stream.step(ids[:, -1:])).to(read.embeds)
            read.embeds = torch.cat([read.embeds, own], dim=1)
        self._read = None
        return read
