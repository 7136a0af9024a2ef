"""A generator with its inputs as one model of ids, which :class:`toklip_core.drawing.Sampler` draws with.

The semantic encoder, where it is in use, gives one more token for each id. With guidance a picture has two rows in the
generator's cache, with its condition and without, and one in the encoder's.

Shape letters: B pictures, R rows (B, or 2 B with the rows without the condition last), n positions so far, Q ids of a
position, K_q size of level q, S width of a state.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from toklip_core.drawing import Drawing, IdLevels
from toklip_core.model import Cache
from torch import Tensor

from toklip_gen.generator.inputs import Inputs, Stream
from toklip_gen.generator.model import Condition, Generator
from toklip_gen.generator.packed_linear import pack_linears

#: Packing takes as long as so many steps; see toklip_gen.generator.packed_linear.
_STEPS_OF_PACKING = 3


@dataclass
class PredictorCache:
    """Caches of generator and encoder for the pictures that are being drawn."""

    #: Generator of steps and logits, with packed weights if many steps follow.
    generator: Generator
    stream: Stream
    cache: Cache

    def keep(self, rows: int) -> None:
        """Drop all rows of the generator except the first ``rows``."""
        self.cache.keep(rows)

    def cut(self, positions: int) -> None:
        """Forget all positions of the pictures but the first ``positions``."""
        self.cache.cut(self.generator.config.condition.length + positions)
        self.stream.cut(positions)

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
    ...     tokenizer={"name": "ibq-1024"}, codebook_sizes=(1024,), image_size=(16, 24), grid=(2, 3), width=32,
    ...     depth=1, heads=2, condition=ClassCondition(classes=10),
    ... )
    >>> sampler = Sampler(IdPredictor(Generator(config).eval(), Inputs("ids")))
    >>> classes = Condition(torch.tensor([3, 7]))
    >>> tuple(sampler.draw(classes, seeds=[0, 1], drawing=Drawing(guidance=Guidance(2.0), top_k=100)).ids.shape)
    (2, 2, 3, 1)
    """

    def __init__(self, generator: Generator, inputs: Inputs) -> None:
        self.generator = generator
        self.inputs = inputs

    @property
    def levels(self) -> IdLevels:
        """Levels in which the ids of a position are predicted."""
        return self.generator.levels

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
        return self.generator.norm.weight.device

    def count(self, condition: Condition) -> int:
        """Return the number B of pictures of a condition."""
        return len(condition.values)

    def prefill(self, condition: Condition, ids: Tensor, *, guided: bool, steps: int) -> tuple[Tensor, PredictorCache]:
        """Read the ids (B, n, Q) of n positions; return the states (R, S) of position n, and the cache for the rest.

        Weights are packed if many steps follow; see :func:`toklip_gen.generator.pack_linears`.
        """
        worth_packing = steps >= _STEPS_OF_PACKING
        generator = pack_linears(self.generator) if worth_packing else self.generator
        read, stream = self.inputs.stream(ids)
        states, cache = generator.prefill(read, _with_nothing(generator, condition) if guided else condition)
        return states, PredictorCache(generator, stream.pack_linears() if worth_packing else stream, cache)

    def step(self, ids: Tensor, cache: PredictorCache) -> Tensor:
        """Read the ids (B, n, Q) of the next n positions; return the states (R, n, S) of those after each of them."""
        return cache.generator.step(cache.stream.step(ids), cache.cache)

    def logits(self, states: Tensor, before: Tensor, cache: PredictorCache) -> Tensor:
        """Return the logits (R, K_q), float32, of level q for states (R, S) and the levels before it, (R, q)."""
        return cache.generator.logits(states, before)

    def step_at(self, ids: Tensor, cache: PredictorCache, positions: Tensor) -> Tensor:
        """Return the states of :meth:`step` for ids at positions (n,), int64, for ``torch.compile``."""
        places = positions + self.generator.config.condition.length
        return self.generator.step_at(cache.stream.step_at(ids, positions), cache.cache, places)


def _with_nothing(generator: Generator, condition: Condition) -> Condition:
    """Return the condition with as many rows of the empty condition after it."""
    everywhere = torch.ones(len(condition.values), dtype=torch.bool, device=condition.values.device)
    nothing = generator.drop_condition(condition, everywhere)
    mask = None if condition.mask is None else condition.mask.repeat(2, 1)
    return Condition(torch.cat([condition.values, nothing.values]), mask)
