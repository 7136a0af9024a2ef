"""Drawing with windows of 1 to 64 positions per call, or "auto": seconds, and what a wider call costs.

The generator in the package draws whole pictures, with both kinds of noise, beside a window of 1 with uniform noise,
which is the default. All take turns. "auto" goes on with the choice of the pictures before; "auto, each alone" has a
new sampler for each picture and makes its choice again, as a command that draws one picture does. On a GPU there are
fewer widths, with uniform noise and without "auto", because each width is compiled first.

GPT-B of LlamaGen's sizes has random weights, whose drafts fit by chance alone, so its rows are the seconds of one call:
in the middle of a picture, and on a GPU, where steps are compiled, the mean over a picture. A window pays off if a call
draws more positions than it takes times as long as a call with one. The floor of a call is the reading of the weights,
or the products, whichever is longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import get_args

import torch
from toklip_core.drawing import Drawing, NoiseKind, Sampler, Window
from toklip_gen import load_generator
from toklip_gen.generator import Condition, Generator, IdPredictor, Inputs
from torch import Tensor

from benchmarks._race import DTYPES, Figure, Options, Row, floor, race
from benchmarks.generation import GUIDANCE, dense_bytes, random_generator, step_operations

WIDTHS = (1, 2, 3, 4, 8, 16, 32, 64)
#: Those on a GPU, where each width is compiled first.
COMPILED_WIDTHS = (1, 4, 16, 64)
#: How many times as fast as a window of 1 a picture should be.
WANTED = "1.8 times a window of 1"
#: Prompts of the generator in the package, one picture each.
CAPTIONS = ("a red circle", "a blue square above a green star", "two yellow triangles", "a white square")


def rows(options: Options) -> Iterator[Row]:
    """Yield the rows of both generators."""
    if not options.on_gpu:
        yield from whole_pictures(options)
    for dtype in ["bfloat16"] if options.on_gpu else DTYPES:
        generator = random_generator("ids", options).to(options.device, DTYPES[dtype])
        calls = compiled_calls if options.on_gpu else single_calls
        yield from calls(generator, dtype, options)
    if options.on_gpu:  # last, because each width is compiled first
        yield from whole_pictures(options)


@dataclass
class Way:
    """Way to draw the pictures of conditions, one after another, and what the last turn took."""

    model: IdPredictor
    window: Window
    noise: NoiseKind
    #: Whether each picture has a sampler of its own.
    alone: bool = False
    calls: int = 0
    widths: set[int] = field(default_factory=set)
    #: Seconds of the processor of each turn.
    processor: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._sampler = Sampler(self.model, window=self.window)

    @property
    def name(self) -> str:
        """Name in a row."""
        return f"{self.noise} noise, window {self.window}{', each alone' * self.alone}"

    def draw(self, conditions: list[Condition], *, compiled: bool) -> Tensor:
        """Draw a picture for each condition; return ids (B, h, w, Q)."""
        start = time.process_time()
        drawn = []
        for seed, condition in enumerate(conditions):
            sampler = Sampler(self.model, window=self.window) if self.alone else self._sampler
            drawn.append(sampler.draw(condition, seeds=[seed], drawing=Drawing(noise=self.noise), compiled=compiled))
        self.processor.append(time.process_time() - start)
        self.calls, self.widths = sum(one.calls for one in drawn), {one.window for one in drawn}
        return torch.cat([one.ids for one in drawn])


def whole_pictures(options: Options) -> Iterator[Row]:
    """Yield the seconds of a picture with each window and noise, on a GPU compiled."""
    shipped = load_generator("toklip-gen-tiny", device=options.device)
    captions = CAPTIONS[:1] if options.quick else CAPTIONS
    conditions = [shipped.conditions([caption]).to(shipped.device) for caption in captions]
    model, noises = IdPredictor(shipped.generator, shipped.inputs), get_args(NoiseKind)
    if options.on_gpu:
        ways = [Way(model, window, "uniform") for window in COMPILED_WIDTHS]
    else:
        ways = [Way(model, window, noise) for noise in noises for window in (*WIDTHS, "auto")]
        ways += [Way(model, "auto", noise, alone=True) for noise in noises]
    draws = {way.name: partial(way.draw, conditions, compiled=options.on_gpu) for way in ways}
    seconds, ids = race(draws, options.repeats)
    each = {name: figure * (1 / len(captions)) for name, figure in seconds.items()}
    first = {way.noise: way for way in ways if way.window == 1}
    for way in ways:
        own = first[way.noise]
        same = (ids[way.name] == ids[own.name]).flatten(1).all(1).sum()
        busy = Figure(tuple(way.processor[-options.repeats :])) * (1 / len(captions))
        note = f"{own.calls / way.calls:.2f} positions per call; {busy.median:.3g} CPU seconds"
        if way.window == "auto":
            note += f"; ended with {' or '.join(map(str, sorted(way.widths)))}"
        if way.noise != "uniform":
            note += f"; {each[way.name].times(each[own.name])} times as fast as a window of 1 with {way.noise} noise"
        yield Row(
            what=f"toklip-gen-tiny, {way.name}",
            unit="s",
            ours=each[way.name],
            peer=each[first["uniform"].name],
            peer_name="a window of 1 with uniform noise",
            wanted=WANTED if way.noise == "uniform" and way.window != 1 else "",
            note=f"{note}; {same} of {len(captions)} pictures are those of a window of 1",
        )


def compiled_calls(generator: Generator, dtype: str, options: Options) -> Iterator[Row]:
    """Yield the milliseconds of a compiled call with each width, the mean of those of a picture with guidance."""
    model, condition = IdPredictor(generator, Inputs("ids")), first_class(options)
    samplers = {width: Sampler(model, window=width) for width in widths_of(generator, options)}
    calls = dict.fromkeys(samplers, 0)

    def draw(width: int) -> None:
        drawn = samplers[width].draw(condition, seeds=[0], drawing=Drawing(GUIDANCE), compiled=True)
        calls[width] = drawn.calls

    seconds, _ = race({str(width): partial(draw, width) for width in samplers}, options.repeats)
    each = {width: seconds[str(width)] * (1 / count) for width, count in calls.items()}
    yield from call_rows(each, generator, dtype, options)


def single_calls(generator: Generator, dtype: str, options: Options) -> Iterator[Row]:
    """Yield the milliseconds of a call with each width in the middle of a picture with guidance."""
    model, half = IdPredictor(generator, Inputs("ids")), generator.config.positions // 2
    ids = torch.zeros(1, generator.config.positions, 1, dtype=torch.int64, device=options.device)
    _, cache = model.prefill(first_class(options), ids[:, :half], guided=True, steps=generator.config.positions)

    def call(width: int) -> Callable[[], Tensor]:
        def read() -> Tensor:
            cache.cut(half)
            return model.step(ids[:, half : half + width], cache)

        return read

    contestants = {str(width): call(width) for width in widths_of(generator, options)}
    seconds, _ = race(contestants, 1 + 2 * options.repeats)
    yield from call_rows({int(width): figure for width, figure in seconds.items()}, generator, dtype, options)


def call_rows(seconds: dict[int, Figure], generator: Generator, dtype: str, options: Options) -> Iterator[Row]:
    """Yield the rows of the seconds of a call with each width, beside one of a position."""
    products, weights = step_operations(generator), dense_bytes(generator)
    for width, figure in seconds.items():
        yield Row(
            what=f"GPT-B, one {'compiled ' * options.on_gpu}call, window {width}, {dtype}",
            unit="ms",
            ours=figure * 1000,
            peer=seconds[1] * 1000,
            peer_name="a window of 1",
            floor=1000 * floor(options, products * width, DTYPES[dtype], read=weights),
            note=f"pays off above {seconds[1].times(figure)} positions per call",
        )


def widths_of(generator: Generator, options: Options) -> list[int]:
    """Return the widths that the second half of a picture has room for."""
    widths = COMPILED_WIDTHS if options.on_gpu else WIDTHS
    return [width for width in widths if width <= generator.config.positions // 2]


def first_class(options: Options) -> Condition:
    """Return the condition of one picture."""
    return Condition(torch.zeros(1, dtype=torch.int64, device=options.device))
