"""Drawing with windows of 1 to 64 positions per call: positions per call, seconds, and what a wider call costs.

The generator in the package draws whole pictures. GPT-B of LlamaGen's sizes has random weights, whose drafts fit by
chance alone, so its rows are the seconds of one call in the middle of a picture. A window pays off if a call draws more
positions than it takes times as long as a call with one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from toklip_core.drawing import Drawing, NoiseKind, Sampler
from toklip_gen import PictureGenerator, load_generator
from toklip_gen.generator import Condition, Generator, IdPredictor, Inputs
from torch import Tensor

from benchmarks._race import DTYPES, Options, Row, race
from benchmarks.generation import random_generator

WIDTHS = (1, 2, 4, 8, 16, 32, 64)
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
    samplers = {width: Sampler(model, window=width) for width in WIDTHS}
    conditions = [shipped.conditions([caption]).to(shipped.device) for caption in captions]
    calls = dict.fromkeys(WIDTHS, 0)

    def draw(width: int) -> Tensor:
        calls[width], ids = 0, []
        for seed, condition in enumerate(conditions):
            drawing = Drawing(noise=noise)
            drawn = samplers[width].draw(condition, seeds=[seed], drawing=drawing, compiled=options.on_gpu)
            ids.append(drawn.ids)
            calls[width] += drawn.calls
        return torch.cat(ids)

    contestants: dict[str, Callable[[], Any]] = {str(width): partial(draw, width) for width in WIDTHS}
    seconds, ids = race(contestants, options.repeats)
    for width in WIDTHS:
        same = (ids[str(width)] == ids["1"]).flatten(1).all(1).sum()
        yield Row(
            what=f"toklip-gen-tiny, {noise} noise, window {width}",
            unit="s",
            ours=seconds[str(width)] * (1 / len(captions)),
            peer=seconds["1"] * (1 / len(captions)),
            peer_name="a window of 1",
            note=f"{calls[1] / calls[width]:.2f} positions per call; {same} of {len(captions)} pictures are the same",
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
    for width in widths:
        ratio = seconds[str(width)].ratio(seconds["1"])
        yield Row(
            what=f"GPT-B, one call, window {width}, {dtype}",
            unit="ms",
            ours=seconds[str(width)] * 1000,
            peer=seconds["1"] * 1000,
            peer_name="a window of 1",
            note=f"pays off above {ratio:.2f} positions per call",
        )
