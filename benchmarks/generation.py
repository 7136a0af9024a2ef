"""GPT-B of LlamaGen's sizes that draws 256 ids, with guidance, beside the official code on the same weights.

Seconds are from the condition to the last id, without decoding. Each step reads the weights once, which is the floor of
one picture; of many the products are. On a GPU both sides are compiled, in bfloat16.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from toklip_core.drawing import Drawing, Guidance, Sampler
from toklip_core.model import EncoderConfig, SemanticEncoder, TrunkConfig
from toklip_core.tokenizer import Tokenizer, TokenizerRecord
from toklip_gen.generator import (
    SIZES,
    ClassCondition,
    Condition,
    Generator,
    GeneratorConfig,
    IdPredictor,
    Inputs,
    official_name,
)
from toklip_vq.published import CONFIGS
from torch import Tensor, nn

from benchmarks._race import DTYPES, Options, Row, floor, race, vqgan, weight_bytes

GUIDANCE = Guidance(2.0)
#: Official / ours that is wanted, by precision and batch, on two cores.
WANTED = {("float32", 1): "2.5x", ("float32", 8): "1.5x", ("bfloat16", 1): "1.5x", ("bfloat16", 8): "1.5x"}


def rows(options: Options) -> Iterator[Row]:
    """Yield what batches of pictures take, and one with TokLIP's tokens at the input."""
    for dtype in ["bfloat16"] if options.on_gpu else DTYPES:
        generator = random_generator("ids", options).to(options.device, DTYPES[dtype])
        for batch in [1, 8, 64] if options.on_gpu else [1, 8]:
            yield beside_official(generator, dtype, batch, options)
    if not options.on_gpu:
        yield with_semantics(generator, dtype, options)


def sizes(options: Options) -> tuple[int, int, int]:
    """Return width, blocks and heads."""
    return (128, 1, 2) if options.quick else SIZES["B"]


def random_generator(features: str, options: Options, feature_width: int | None = None) -> Generator:
    """Return GPT-B with random weights, a head that tells ids apart among them."""
    width, depth, heads = sizes(options)
    side = 3 if options.quick else 16
    config = GeneratorConfig(
        tokenizer=TokenizerRecord(name="codebook"),
        toklip="random" if features == "concat" else None,
        codebook_sizes=(16384,),
        image_size=(16 * side, 16 * side),
        grid=(side, side),
        width=width,
        depth=depth,
        heads=heads,
        features=features,  # type: ignore[arg-type]
        feature_width=feature_width,
        condition=ClassCondition(classes=1000),
    )
    generator = Generator(config)
    nn.init.normal_(generator.get_parameter("head.weight"), std=0.02)
    return generator.eval()


def beside_official(generator: Generator, dtype: str, batch: int, options: Options) -> Row:
    """Race the two sides."""
    condition = Condition(torch.arange(batch, device=options.device))
    count = generator.config.positions
    sampler = Sampler(IdPredictor(generator, Inputs("ids")))

    def ours(temperature: float = 1.0) -> Tensor:
        drawing = Drawing(GUIDANCE, temperature)
        return sampler.draw(condition, seeds=range(batch), drawing=drawing, compiled=options.on_gpu).ids.flatten(1)

    contestants: dict[str, Callable[[], Any]] = {"ours": ours}
    note = ""
    if options.llamagen:
        official = official_generator(options.llamagen, generator, options.on_gpu)
        contestants["official"] = lambda: official(condition.values, count, 1.0)
        if dtype == "float32" and batch == 1:
            same = ours(0.0) == official(condition.values, count, 0.0)
            note = f"{same.float().mean():.1%} of greedy ids are the same"
    seconds, _ = race(contestants, options.repeats)
    products, weights = step_operations(generator) * batch, dense_bytes(generator)
    return Row(
        what=f"GPT-B, {batch} x {count} ids, {dtype}",
        unit="s",
        ours=seconds["ours"],
        peer=seconds.get("official"),
        peer_name="LlamaGen",
        floor=floor(options, products * count, DTYPES[dtype], read=weights * count),
        wanted="" if options.on_gpu else WANTED[dtype, batch],
        note=f"{batch * count / seconds['ours'].median:.1f} ids a second; {note}".rstrip("; "),
    )


def with_semantics(plain: Generator, dtype: str, options: Options) -> Row:
    """One picture with VQ-16 and a semantic encoder of the generator's own size beside it, and what that costs."""
    width, depth, heads = sizes(options)
    trunk = TrunkConfig(width=width, depth=depth, heads=heads)
    config = EncoderConfig(codebook_dim=8, grid=plain.config.grid, trunk=trunk)
    encoder = SemanticEncoder(config).eval().to(DTYPES[dtype])
    tokenizer = Tokenizer("codebook", vqgan(CONFIGS["VQ-16"], options).tokenizer())
    inputs = Inputs("concat", tokenizer=tokenizer, encoder=encoder)
    generator = random_generator("concat", options, inputs.width).to(DTYPES[dtype])
    condition = Condition(torch.zeros(1, dtype=torch.int64))

    def draw(model: Generator, read: Inputs) -> Callable[[], Tensor]:
        return lambda: Sampler(IdPredictor(model, read)).draw(condition, seeds=[0], drawing=Drawing(GUIDANCE)).ids

    contestants = {"concat": draw(generator, inputs), "ids": draw(plain, Inputs("ids"))}
    seconds, _ = race(contestants, options.repeats)
    own = dense_bytes(plain)
    added = weight_bytes(encoder.blocks, encoder.projector)
    count = plain.config.positions
    return Row(
        what=f"GPT-B with an encoder of its size (concat), 1 x {count} ids, {dtype}",
        unit="s",
        ours=seconds["concat"],
        peer=seconds["ids"],
        peer_name="ours without the encoder",
        floor=floor(options, 0, read=(own + added) * count),
        note=f"the encoder has {added / own:.0%} as many parameters",
    )


def dense_bytes(generator: Generator) -> int:
    """Return the bytes of its weights but for the tables of ids and classes, of which a step reads a row."""
    return weight_bytes(generator) - weight_bytes(*(x for x in generator.modules() if isinstance(x, nn.Embedding)))


def step_operations(generator: Generator) -> float:
    """Return the operations of a step of one picture with guidance, which is two rows."""
    return 2 * 2 * dense_bytes(generator) / generator.norm.weight.itemsize


def official_generator(path: Path, generator: Generator, compiled: bool) -> Callable[[Tensor, int, float], Tensor]:
    """Return the official code on our weights, as its own scripts call it: classes, ids to draw, temperature -> ids."""
    sys.path.insert(0, str(path))
    with contextlib.redirect_stdout(sys.stderr):
        from autoregressive.models.generate import generate  # type: ignore[import-not-found]
        from autoregressive.models.gpt import ModelArgs, Transformer  # type: ignore[import-not-found]
    weight = generator.norm.weight
    config = generator.config
    model: Any = Transformer(
        ModelArgs(
            model_type="c2i", dim=config.width, n_layer=config.depth, n_head=config.heads, vocab_size=16384,
            block_size=config.positions, num_classes=1000, cls_token_num=1,
        )
    )  # fmt: skip
    model.load_state_dict(official_state(generator))
    model.to(weight.device, weight.dtype).eval()
    if compiled:
        model = torch.compile(model, mode="reduce-overhead", fullgraph=True)

    def draw(classes: Tensor, count: int, temperature: float) -> Tensor:
        with warnings.catch_warnings(action="ignore"):
            arguments = {"top_k": 0, "top_p": 1.0, "temperature": temperature or 1.0}
            ids: Tensor = generate(
                model, classes, count, cfg_scale=GUIDANCE.scale, sample_logits=temperature > 0, **arguments
            )
        return ids

    return draw


def official_state(generator: Generator) -> dict[str, Tensor]:
    """Return the weights by their official names."""
    state: dict[str, Tensor] = {}
    for name, tensor in generator.state_dict().items():
        names = official_name(name).split(" and ")
        state |= dict(zip(names, tensor.chunk(len(names)), strict=True))
    return state
