"""Drawing with windows of 1 to 64 positions per call, or "auto": seconds, and what a wider call costs.

The generator in the package draws whole pictures. GPT-B of LlamaGen's sizes has random weights, whose drafts fit by
chance alone, so its rows are the seconds of one call in the middle of a picture. A window pays off if a call draws more
positions than it takes times as long as a call with one. The floor of a call is the reading of the weights, or the
products, whichever is longer.
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
from benchmarks.generation import dense_bytes, random_generator

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
        yield from single_calls(generator, dtype, options)


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
    if options.on_gpu:
        torch.compiler.reset()  # torch keeps eight graphs of a function

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


def single_calls(generator: Generator, dtype: str, options: Options) -> Iterator[Row]:
    """Yield the milliseconds of a call with each width, for one picture with guidance, beside one of a position."""
    model, half = IdPredictor(generator, Inputs("ids")), generator.config.positions // 2
    condition = Condition(torch.zeros(1, dtype=torch.int64, device=options.device))
    ids = torch.zeros(1, generator.config.positions, 1, dtype=torch.int64, device=options.device)
    _, cache = model.prefill(condition, ids[:, :half], guided=True, steps=generator.config.positions)

    def call(width: int) -> Callable[[], Tensor]:
        def read() -> Tensor:
            cache.cut(half)
            return model.step(ids[:, half : half + width], cache)

        return read

    widths = [width for width in WIDTHS if width <= half]
    seconds, _ = race({str(width): call(width) for width in widths}, 1 + 2 * options.repeats)
    weights = dense_bytes(generator)
    products = 2 * weights / DTYPES[dtype].itemsize * 2  # with guidance a position is two rows
    for width in widths:
        ratio = seconds[str(width)].ratio(seconds["1"])
        yield Row(
            what=f"GPT-B, one call, window {width}, {dtype}",
            unit="ms",
            ours=seconds[str(width)] * 1000,
            peer=seconds["1"] * 1000,
            peer_name="a window of 1",
            floor=1000 * floor(options, products * width, DTYPES[dtype], read=weights),
            note=f"pays off above {ratio:.2f} positions per call",
        )
