"""Drawing with windows of 1 to 64 positions per call, or "auto": seconds, and what a wider call costs.

The generator in the package draws whole pictures. GPT-B of LlamaGen's sizes has random weights, whose drafts fit by
chance alone, so its rows are the seconds of one call: in the middle of a picture, and on a GPU, where steps are
compiled, the mean over a picture. A window pays off if a call draws more positions than it takes times as long as a
call with one. The floor of a call is the reading of the weights, or the products, whichever is longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from toklip_core.drawing import Drawing, NoiseKind, Sampler, Window
from toklip_gen import PictureGenerator, load_generator
from toklip_gen.generator import Condition, Generator, IdPredictor, Inputs
from torch import Tensor

from benchmarks._race import DTYPES, Figure, Options, Row, floor, race
from benchmarks.generation import GUIDANCE, dense_bytes, random_generator

WIDTHS = (1, 2, 3, 4, 8, 16, 32, 64)
#: Prompts of the generator in the package, one picture each.
CAPTIONS = ("a red circle", "a blue square above a green star", "two yellow triangles", "a white square")


def rows(options: Options) -> Iterator[Row]:
    """Yield the rows of both generators."""
    shipped = load_generator("toklip-gen-tiny", device=options.device)
    captions = CAPTIONS[:1] if options.quick else CAPTIONS
    for noise in ("uniform", "gumbel"):
        yield from whole_pictures(shipped, captions, noise, options)
    for dtype in ["bfloat16"] if options.on_gpu else DTYPES:
        generator = random_generator("ids", options).to(options.device, DTYPES[dtype])
        calls = compiled_calls if options.on_gpu else single_calls
        yield from calls(generator, dtype, options)


def whole_pictures(
    shipped: PictureGenerator, captions: Sequence[str], noise: NoiseKind, options: Options
) -> Iterator[Row]:
    """Yield the seconds of a picture for each width, on a GPU compiled, beside those of a window of 1."""
    model = IdPredictor(shipped.generator, shipped.inputs)
    windows: list[Window] = [*WIDTHS, "auto"]
    samplers = {window: Sampler(model, window=window) for window in windows}
    conditions = [shipped.conditions([caption]).to(shipped.device) for caption in captions]
    calls = dict.fromkeys(windows, 0)
    processor: dict[Window, list[float]] = {window: [] for window in windows}

    def draw(window: Window) -> Tensor:
        start = time.process_time()
        calls[window], ids = 0, []
        for seed, condition in enumerate(conditions):
            drawing = Drawing(noise=noise)
            drawn = samplers[window].draw(condition, seeds=[seed], drawing=drawing, compiled=options.on_gpu)
            ids.append(drawn.ids)
            calls[window] += drawn.calls
        processor[window].append((time.process_time() - start) / len(captions))
        return torch.cat(ids)

    contestants: dict[str, Callable[[], Any]] = {str(window): partial(draw, window) for window in windows}
    seconds, ids = race(contestants, options.repeats)
    for window in windows:
        same = (ids[str(window)] == ids["1"]).flatten(1).all(1).sum()
        busy = Figure(tuple(processor[window][-options.repeats :]))
        yield Row(
            what=f"toklip-gen-tiny, {noise} noise, window {window}",
            unit="s",
            ours=seconds[str(window)] * (1 / len(captions)),
            peer=seconds["1"] * (1 / len(captions)),
            peer_name="a window of 1",
            note=f"{calls[1] / calls[window]:.2f} positions per call; {busy.median:.3g} s of the processor; "
            f"{same} of {len(captions)} pictures are the same",
        )


def compiled_calls(generator: Generator, dtype: str, options: Options) -> Iterator[Row]:
    """Yield the milliseconds of a compiled call with each width, the mean of those of a picture with guidance."""
    model, condition = IdPredictor(generator, Inputs("ids")), first_class(options)
    samplers = {width: Sampler(model, window=width) for width in widths_of(generator)}
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

    contestants = {str(width): call(width) for width in widths_of(generator)}
    seconds, _ = race(contestants, 1 + 2 * options.repeats)
    yield from call_rows({int(width): figure for width, figure in seconds.items()}, generator, dtype, options)


def call_rows(seconds: dict[int, Figure], generator: Generator, dtype: str, options: Options) -> Iterator[Row]:
    """Yield the rows of the seconds of a call with each width, beside one of a position."""
    weights = dense_bytes(generator)
    products = 2 * weights / DTYPES[dtype].itemsize * 2  # with guidance a position is two rows
    for width, figure in seconds.items():
        yield Row(
            what=f"GPT-B, one {'compiled ' * options.on_gpu}call, window {width}, {dtype}",
            unit="ms",
            ours=figure * 1000,
            peer=seconds[1] * 1000,
            peer_name="a window of 1",
            floor=1000 * floor(options, products * width, DTYPES[dtype], read=weights),
            note=f"pays off above {figure.ratio(seconds[1]):.2f} positions per call",
        )


def widths_of(generator: Generator) -> list[int]:
    """Return the widths that the second half of a picture has room for."""
    return [width for width in WIDTHS if width <= generator.config.positions // 2]


def first_class(options: Options) -> Condition:
    """Return the condition of one picture."""
    return Condition(torch.zeros(1, dtype=torch.int64, device=options.device))
