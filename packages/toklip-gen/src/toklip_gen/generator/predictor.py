"""A generator with its inputs as one model of ids, which :class:`toklip_core.drawing.Sampler` draws with.

The semantic encoder, where it is in use, gives one more token for each id. With guidance a picture has two rows in the
generator's cache, with its condition and without, and one in the encoder's.

Letters: B pictures, R rows (B, or 2 B with the rows without the condition last), n ids so far, K ids of the codebook.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from toklip_core.drawing import Drawing
from toklip_core.model import Cache
from torch import Tensor

from toklip_gen.generator.inputs import Inputs, Stream
from toklip_gen.generator.model import Condition, Generator
from toklip_gen.generator.packed_linear import packed

#: Packing takes as long as so many steps; see toklip_gen.generator.packed_linear.
_STEPS_OF_PACKING = 3


@dataclass
class PredictorCache:
    """Caches of generator and encoder for the pictures that are being drawn."""

    #: Generator of the steps, with packed weights if many steps follow.
    generator: Generator
    stream: Stream
    cache: Cache

    def keep(self, rows: int) -> None:
        """Drop all rows of the generator except the first ``rows``."""
        self.cache.keep(rows)

    def tensors(self) -> list[Tensor]:
        """Return the tensors of both caches, which stay in the same memory."""
        return [*self.cache.tensors(), *self.stream.caches()]


class IdPredictor:
    """Generator and inputs, as a sampler draws with them; see :class:`toklip_core.drawing.NextIdModel`.

    Args:
        generator: generator in evaluation mode.
        inputs: inputs of the generator, with the same ``features``.

    >>> from toklip_core.drawing import Guidance, Sampler
    >>> from toklip_gen.generator.config import ClassCondition, GeneratorConfig
    >>> config = GeneratorConfig(
    ...     tokenizer={"name": "llamagen-tiny"}, codebook_size=1024, grid=(2, 3), width=32, depth=1, heads=2,
    ...     condition=ClassCondition(classes=10),
    ... )
    >>> sampler = Sampler(IdPredictor(Generator(config).eval(), Inputs("ids")))
    >>> classes = Condition(torch.tensor([3, 7]))
    >>> tuple(sampler.draw(classes, seeds=[0, 1], drawing=Drawing(guidance=Guidance(2.0), top_k=100)).shape)
    (2, 2, 3)
    """

    def __init__(self, generator: Generator, inputs: Inputs) -> None:
        self.generator = generator
        self.inputs = inputs

    @property
    def codebook_size(self) -> int:
        """K: the number of ids to choose from."""
        return self.generator.config.codebook_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the ids of a picture."""
        return self.generator.config.grid

    @property
    def drawing(self) -> Drawing:
        """Settings that the generator's config recommends."""
        return self.generator.config.drawing

    @property
    def device(self) -> torch.device:
        """Device that the generator is on."""
        return self.generator.head.weight.device

    def count(self, condition: Condition) -> int:
        """Return the number B of pictures of a condition."""
        return len(condition.values)

    def prefill(self, condition: Condition, ids: Tensor, *, guided: bool, steps: int) -> tuple[Tensor, PredictorCache]:
        """Read the first n ids (B, n); return the logits (R, K), float32, of id n, and the cache for what follows.

        Weights are packed if many steps follow; see :func:`toklip_gen.generator.packed`.
        """
        worth_packing = steps >= _STEPS_OF_PACKING
        generator = packed(self.generator) if worth_packing else self.generator
        read, stream = self.inputs.stream(ids)
        logits, cache = generator.prefill(read, _with_nothing(generator, condition) if guided else condition)
        return logits, PredictorCache(generator, stream.packed() if worth_packing else stream, cache)

    def step(self, ids: Tensor, cache: PredictorCache) -> Tensor:
        """Read the next ids (B,); return the logits (R, K), float32, of the ids after them."""
        return cache.generator.step(cache.stream.step(ids), cache.cache)

    def step_at(self, ids: Tensor, cache: PredictorCache, position: Tensor) -> Tensor:
        """Return the logits of :meth:`step` for ids at a position (1,), int64, for ``torch.compile``."""
        place = position + self.generator.config.condition.length
        return self.generator.step_at(cache.stream.step_at(ids, position), cache.cache, place)


def _with_nothing(generator: Generator, condition: Condition) -> Condition:
    """Return the condition with as many rows of the empty condition after it."""
    everywhere = torch.ones(len(condition.values), dtype=torch.bool, device=condition.values.device)
    nothing = generator.dropped(condition, everywhere)
    mask = None if condition.mask is None else condition.mask.repeat(2, 1)
    return Condition(torch.cat([condition.values, nothing.values]), mask)
