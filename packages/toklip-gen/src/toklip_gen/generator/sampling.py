"""Drawing: one id after another, with guidance.

Each step asks the generator for the logits of the next id, and the semantic encoder, where it is in use, for one more
token. With guidance a picture has two rows in the generator's cache, with its condition and without, and one in the
encoder's.

Letters: B pictures, h and w grid, N = h w, n ids of the prefix, K ids of the codebook.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple, NoReturn
from weakref import WeakKeyDictionary

import torch
from toklip_core.finite import refuse_not_finite
from toklip_core.ranges import LARGEST_SCALE, LEAST_TEMPERATURE, refuse_drawing, refuse_outside
from torch import Tensor
from tqdm import tqdm

from toklip_gen.generator.inputs import Inputs, Stream
from toklip_gen.generator.model import Cache, Condition, Generator
from toklip_gen.generator.packed_linear import packed

#: Packing takes as long as so many steps; see toklip_gen.generator.packed_linear.
_STEPS_OF_PACKING = 3

_NO_LOGITS = "the weights are damaged, or numbers too large; load other ones, compute in float32, or lower the guidance"


class Guidance(NamedTuple):
    """Classifier-free guidance: logits are uncond + s (cond - uncond).

    Source: Ho and Salimans, https://arxiv.org/abs/2207.12598; for the schedule, RAR, https://arxiv.org/abs/2411.00776.

    >>> Guidance(3.0, first=1, last=2).scales(4)
    [1.0, 3.0, 3.0, 1.0]
    """

    #: Scale s; 1 turns guidance off, 0 ignores the condition.
    scale: float = 4.0
    #: First id with guidance, counted from 0; ids before it have s = 1.
    first: int = 0
    #: Last id with guidance; ids after it have s = 1; None: the last of all. LlamaGen's cfg_interval, which counts
    #: from the second id, plus 1.
    last: int | None = None
    #: Power p of the schedule 1 + (s - 1) (1 - cos(pi (i / N)^p)) / 2, for id i of N; None: s is constant.
    power: float | None = None

    def scales(self, count: int) -> list[float]:
        """Return the scale s of each of ``count`` ids."""
        last = count if self.last is None else self.last
        return [self._at(i, count) if self.first <= i <= last else 1.0 for i in range(count)]

    def _at(self, i: int, count: int) -> float:
        if self.power is None:
            return self.scale
        return 1 + (self.scale - 1) * 0.5 * (1 - math.cos(math.pi * (i / count) ** self.power))


class Choice(NamedTuple):
    """Settings by which an id is chosen from its logits."""

    #: Divisor of the logits; 0, or less than LEAST_TEMPERATURE, always takes the most likely id.
    temperature: float = 1.0
    #: Number of the likeliest ids to sample from; 0 means all.
    top_k: int = 0
    #: Total probability of the likeliest ids to sample from, as few as reach it; 1 means all.
    top_p: float = 1.0


@torch.no_grad()
def sample(
    generator: Generator,
    inputs: Inputs,
    condition: Condition,
    *,
    seeds: Sequence[int],
    guidance: Guidance | float = Guidance(),  # noqa: B008 - a constant
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    prefix: Tensor | None = None,
    compiled: bool = False,
    progress: bool = False,
) -> Tensor:
    """Sample pictures id by id; return ids (B, h, w).

    Apart from rounding, a picture depends only on its condition, its prefix and its seed: it is the same alone and in a
    batch. All random numbers are drawn before the first step, one for each id.

    Args:
        generator: generator in evaluation mode.
        inputs: inputs of the generator, with the same ``features``.
        condition: conditions of B pictures.
        seeds: one seed per picture.
        guidance: guidance, or just its scale.
        temperature: sampling temperature; 0 always takes the most likely id.
        top_k: number of the likeliest ids to sample from, 0 to K; 0 means all.
        top_p: total probability of the likeliest ids to sample from, above 0 and up to 1; 1 means all.
        prefix: (B, n) ids that the pictures start with, in raster order; n <= N.
        compiled: run with ``torch.compile``, for GPUs: the first step takes a minute, the others are faster.
        progress: show a progress bar on stderr.

    Raises:
        ValueError: a value is out of its range, shapes do not fit, or logits are NaN or infinite.

    >>> from toklip_gen.generator.config import ClassCondition, GeneratorConfig
    >>> config = GeneratorConfig(
    ...     tokenizer="llamagen-tiny", codebook_size=1024, grid=(4, 4), width=64, depth=2, heads=4,
    ...     condition=ClassCondition(classes=10),
    ... )
    >>> generator = Generator(config).eval()
    >>> sample(generator, Inputs("ids"), Condition(torch.tensor([3, 7])), seeds=[0, 1]).shape
    torch.Size([2, 4, 4])
    """
    guidance = guidance if isinstance(guidance, Guidance) else Guidance(guidance)
    choice = Choice(temperature, top_k, top_p)
    refuse_guidance(guidance)
    refuse_drawing(**choice._asdict(), most=generator.config.codebook_size, seeds=seeds)
    batch, count = len(condition.values), generator.config.positions
    if len(seeds) != batch:
        raise ValueError(f"got {len(seeds)} seeds for {batch} pictures; wanted one for each")
    ids = torch.zeros(batch, count, dtype=torch.int64, device=condition.values.device)
    known = 0 if prefix is None else _begin(ids, prefix, generator.config.codebook_size)
    luck = torch.stack([_uniform(seed, count) for seed in seeds]).to(ids.device)
    if known < count:
        with tqdm(desc="ids", initial=known, total=count, disable=not progress) as bar:
            draw = _draw_compiled if compiled else _draw
            marks = draw(generator, inputs, condition, ids, known, luck, guidance.scales(count), choice, bar)
        refuse_not_finite(marks, "a logit", advice=_NO_LOGITS)
    return ids.unflatten(1, generator.config.grid)  # type: ignore[no-any-return, no-untyped-call]


def chosen(logits: Tensor, luck: Tensor, choice: Choice) -> Tensor:
    """Choose ids (B,), int64, by logits (B, K) and numbers (B,) that are uniform in [0, 1).

    An id is where the cumulated probability passes the number, in the order of the codebook: one number an id, and none
    that depends on the rest of the batch.
    """
    if choice.temperature < LEAST_TEMPERATURE:
        return logits.argmax(-1)
    logits = (logits - logits.amax(-1, keepdim=True)) / choice.temperature
    if 0 < choice.top_k < logits.shape[-1]:
        least = logits.topk(choice.top_k, sorted=False).values.amin(-1, keepdim=True)
        logits = logits.masked_fill(logits < least, -torch.inf)
    if choice.top_p < 1:
        # The ids before which less than top_p has been passed: the likeliest is always one of them.
        ordered = logits.sort(descending=True).values
        shares = ordered.softmax(-1)
        kept = shares.cumsum(-1) - shares < choice.top_p
        logits = logits.masked_fill(logits < ordered.masked_fill(~kept, torch.inf).amin(-1, keepdim=True), -torch.inf)
    passed = logits.softmax(-1).cumsum(-1)
    total = passed[:, -1]
    goal = torch.minimum(luck * total, torch.nextafter(total, torch.zeros_like(total)))
    # Among NaN no place is found; an id it must be, for the next step reads it before the marks are looked at.
    return torch.searchsorted(passed, goal[:, None], right=True)[:, 0].clamp_max(logits.shape[-1] - 1)


def _mark(logits: Tensor) -> Tensor:
    """Return (B,): 0, or NaN where no id can be chosen by logits (B, K). It is looked at once, after the last step.

    -inf is no fault: it is how an id is ruled out, unless all are.
    """
    return 0 * logits.amax(-1)


def _draw(
    generator: Generator,
    inputs: Inputs,
    condition: Condition,
    ids: Tensor,
    known: int,
    luck: Tensor,
    scales: list[float],
    choice: Choice,
    bar: tqdm[NoReturn],
) -> Tensor:
    """Fill ids (B, N) from ``known`` on; return the sum of the marks, (B,)."""
    batch, count = ids.shape
    worth_packing = count - known > _STEPS_OF_PACKING
    generator = packed(generator) if worth_packing else generator
    read, stream = inputs.stream(ids[:, :known])
    logits, cache = generator.prefill(read, _with_nothing(generator, condition, scales[known:]))
    stream = stream.packed() if worth_packing else stream
    guided_to = max((i for i, scale in enumerate(scales) if scale != 1), default=-1)
    marks = luck.new_zeros(batch)
    for i in range(known, count):
        if i > known:
            if i > guided_to:
                cache.keep(batch)
            logits = generator.step(stream.step(ids[:, i - 1]), cache)
        guided = _guided(logits, batch, scales[i])
        ids[:, i] = chosen(guided, luck[:, i], choice)
        marks += _mark(guided)
        bar.update()
    return marks


def _draw_compiled(
    generator: Generator,
    inputs: Inputs,
    condition: Condition,
    ids: Tensor,
    known: int,
    luck: Tensor,
    scales: list[float],
    choice: Choice,
    bar: tqdm[NoReturn],
) -> Tensor:
    """Do what :func:`_draw` does; every step is one call of one graph, whose shapes do not change."""
    batch, count = ids.shape
    read, stream = inputs.stream(ids[:, :known])
    logits, cache = generator.prefill(read, _with_nothing(generator, condition, scales[known:]))
    guided = _guided(logits, batch, scales[known])
    ids[:, known] = chosen(guided, luck[:, known], choice)
    marks = _mark(guided)
    bar.update()
    cache, stream = _kept(generator, cache, stream)
    scale = torch.tensor(scales, device=ids.device)
    position = torch.arange(count, device=ids.device)
    advance = _compiled(ids.device.type)
    for i in range(known + 1, count):
        drawn, mark = advance(
            generator, stream, cache, ids[:, i - 1].clone(), position[i - 1 : i].clone(), scale[i], luck[:, i], choice
        )
        ids[:, i] = drawn
        marks += mark
        bar.update()
    return marks


#: The caches of each generator's last compiled drawing.
_last: WeakKeyDictionary[Generator, tuple[Cache, Stream]] = WeakKeyDictionary()


def _kept(generator: Generator, cache: Cache, stream: Stream) -> tuple[Cache, Stream]:
    """Return the caches of the last drawing with what is in these, or these if their shapes are others.

    A graph is of one place in memory: in new caches each batch would be compiled, or recorded, anew.
    """
    new = [*cache.tensors(), *stream.caches()]
    if generator in _last:
        kept, kept_stream = _last[generator]
        old = [*kept.tensors(), *kept_stream.caches()]
        shapes = [[(x.shape, x.dtype, x.device) for x in tensors] for tensors in (old, new)]
        if shapes[0] == shapes[1] and kept_stream.reads_as(stream):
            for place, tensor in zip(old, new, strict=True):
                place.copy_(tensor)
            return kept, kept_stream
    for tensor in new:
        torch._dynamo.mark_static_address(tensor, guard=False)  # or CUDA graphs would copy them at every step
    _last[generator] = cache, stream
    return cache, stream


def _advance(
    generator: Generator,
    stream: Stream,
    cache: Cache,
    ids: Tensor,
    position: Tensor,
    scale: Tensor,
    luck: Tensor,
    choice: Choice,
) -> tuple[Tensor, Tensor]:
    """Return the ids (B,) that follow ``ids`` (B,), which are at ``position`` (1,) of the picture, and their marks."""
    place = position + generator.config.condition.length
    logits = generator.step_at(stream.step_at(ids, position), cache, place)
    guided = _guided(logits, len(ids), scale)
    return chosen(guided, luck, choice), _mark(guided)


@cache
def _compiled(device: str) -> Callable[..., tuple[Tensor, Tensor]]:
    mode = "reduce-overhead" if device == "cuda" else "default"
    return torch.compile(_advance, fullgraph=True, mode=mode)


def _with_nothing(generator: Generator, condition: Condition, scales: Sequence[float]) -> Condition:
    """Return the condition, and after its rows those without it, if any scale asks for them."""
    if all(scale == 1 for scale in scales):
        return condition
    everywhere = torch.ones(len(condition.values), dtype=torch.bool, device=condition.values.device)
    nothing = generator.dropped(condition, everywhere)
    mask = None if condition.mask is None else condition.mask.repeat(2, 1)
    return Condition(torch.cat([condition.values, nothing.values]), mask)


def _guided(logits: Tensor, batch: int, scale: float | Tensor) -> Tensor:
    """Return logits (B, K) of (B, K), or of (2 B, K), those without the condition being last."""
    if len(logits) == batch:
        return logits
    with_it, without = logits.chunk(2)
    if isinstance(scale, float) and scale == 1:
        return with_it
    return without + scale * (with_it - without)


def _uniform(seed: int, count: int) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))


def _begin(ids: Tensor, prefix: Tensor, codebook_size: int) -> int:
    """Put a prefix into ids (B, N), and return its length."""
    if prefix.ndim != 2 or len(prefix) != len(ids) or prefix.shape[1] > ids.shape[1]:
        raise ValueError(f"got the prefix {tuple(prefix.shape)}; wanted ({len(ids)}, n), n from 0 to {ids.shape[1]}")
    if prefix.numel() and not 0 <= int(prefix.min()) <= int(prefix.max()) < codebook_size:
        raise ValueError(f"the prefix has ids from {prefix.min()} to {prefix.max()}; wanted 0 to {codebook_size - 1}")
    ids[:, : prefix.shape[1]] = prefix
    return prefix.shape[1]


def refuse_guidance(guidance: Guidance) -> None:
    """ValueError if a value is out of its range."""
    scale, first, last, power = guidance
    powers = f"more than 0, up to {LARGEST_SCALE:g}"
    for name, value, fits, wanted in (
        ("guidance", scale, 0 <= scale <= LARGEST_SCALE, f"0 or more; 1 is none, {LARGEST_SCALE:g} the most"),
        ("first id of guidance", first, first >= 0, "0 or more"),
        ("last id of guidance", last, last is None or last >= first, f"{first}, its first, or more"),
        ("power of guidance", power, power is None or 0 < power <= LARGEST_SCALE, powers),
    ):
        refuse_outside(name, value, fits, wanted)
