"""Speed of drawing beside LlamaGen's own code, if it is given: GPT-B, 256 ids, with guidance, the same weights.

    python benchmarks/generation.py --llamagen PATH/LlamaGen --json generation.json

Weights are random, of the published shapes. The two sides take turns, and each figure is the best of the repeats: ids
a second, summed over the pictures of a batch, from the condition to the last id, without decoding. The floor of one
picture is what reading the weights of a step once would take at the rate of memory, measured in the same run.

With --device cuda both sides are compiled, in bfloat16, at batches of 1, 8 and 64.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from _race import machine_name, race
from toklip_core.encoder import EncoderConfig, SemanticEncoder
from toklip_core.trunk import TrunkConfig
from toklip_gen.checkpoint import official_name
from toklip_gen.config import SIZES, ClassCondition, GeneratorConfig
from toklip_gen.inputs import Inputs
from toklip_gen.model import Condition, Generator
from toklip_gen.sampling import sample
from toklip_vq.llamagen import CONFIGS
from toklip_vq.vqgan import VQGANTokenizer, build_vqgan
from torch import Tensor, nn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
GUIDANCE = 2.0
#: Official / ours that issue 5 asks for, by precision and batch, on two cores.
TARGETS = {("float32", 1): 2.5, ("float32", 8): 1.5, ("bfloat16", 1): 1.5, ("bfloat16", 8): 1.5}


@dataclass(frozen=True)
class Row:
    """One line of the table, in ids a second."""

    what: str
    ours: float
    official: float | None
    floor: float | None
    target: str
    note: str


def main() -> None:
    """Print the table; write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llamagen", type=Path, help="a checkout of FoundationVision/LlamaGen to compare with")
    parser.add_argument("--json", type=Path, help="the file to write")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", type=int, default=16, help="of the grid of ids; less for a quick look")
    parser.add_argument("--batches", type=int, nargs="+", help="by default 1 and 8, on a GPU also 64")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, help="by default both, on a GPU bfloat16")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    on_gpu = options.device != "cpu"
    machine = torch.cuda.get_device_name() if on_gpu else machine_name(options.threads)
    print(machine)
    rows = []
    for name in options.dtypes or (["bfloat16"] if on_gpu else list(DTYPES)):
        generator = random_generator("ids", options.side).to(options.device, DTYPES[name])
        for batch in options.batches or ([1, 8, 64] if on_gpu else [1, 8]):
            rows.append(beside_official(generator, name, batch, options))
        if not on_gpu:
            rows.append(with_semantics(generator, name, options))
    print(table(rows))
    if options.json:
        result = {"machine": machine, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def random_generator(features: str, side: int, feature_width: int | None = None) -> Generator:
    """Return GPT-B with random weights, a head that tells ids apart among them."""
    width, depth, heads = SIZES["B"]
    config = GeneratorConfig(
        tokenizer="codebook",
        toklip="random" if features == "concat" else None,
        codebook_size=16384,
        grid=(side, side),
        width=width,
        depth=depth,
        heads=heads,
        features=features,  # type: ignore[arg-type]
        feature_width=feature_width,
        condition=ClassCondition(classes=1000),
    )
    generator = Generator(config)
    nn.init.normal_(generator.head.weight, std=0.02)
    return generator.eval()


def beside_official(generator: Generator, dtype: str, batch: int, options: argparse.Namespace) -> Row:
    """Race the two sides."""
    on_gpu = options.device != "cpu"
    condition = Condition(torch.arange(batch, device=options.device))
    count = generator.config.positions

    def ours(temperature: float = 1.0) -> Tensor:
        ids = sample(
            generator,
            Inputs("ids"),
            condition,
            seeds=range(batch),
            guidance=GUIDANCE,
            temperature=temperature,
            compiled=on_gpu,
        )
        return finished(ids.flatten(1))

    contestants: dict[str, Callable[[], Any]] = {"ours": ours}
    note = ""
    if options.llamagen:
        official = official_generator(options.llamagen, generator, on_gpu)
        contestants["official"] = lambda: finished(official(condition.values, count, 1.0))
        same = ours(0.0) == official(condition.values, count, 0.0)
        note = f"; {same.float().mean():.1%} of greedy ids are the same"
    if on_gpu:
        race(contestants, 1)
    seconds, _ = race(contestants, options.repeats)
    rates = {name: batch * count / value for name, value in seconds.items()}
    floor = None
    if batch == 1:
        read = sum(x.numel() * x.element_size() for x in generator.parameters()) - table_bytes(generator)
        bandwidth = memory_rate(options.device, options.repeats)
        floor = bandwidth / read
        note = f"{rates['ours'] / floor:.2f} of the floor, at {bandwidth / 1e9:.1f} GB/s{note}"
    target = "" if on_gpu else f"{TARGETS.get((dtype, batch), '-')}x"
    return Row(f"ids, {dtype}, batch {batch}", rates["ours"], rates.get("official"), floor, target, note.lstrip("; "))


def with_semantics(plain: Generator, dtype: str, options: argparse.Namespace) -> Row:
    """One picture with VQ-16 and a semantic encoder of the generator's own size beside it, and what that costs."""
    width, depth, heads = SIZES["B"]
    trunk = TrunkConfig(width=width, depth=depth, heads=heads)
    sizes = EncoderConfig(codebook_dim=8, grid=plain.config.grid, trunk=trunk)
    encoder = SemanticEncoder(sizes).eval().to(DTYPES[dtype])
    tokenizer = VQGANTokenizer(build_vqgan(CONFIGS["VQ-16"]))
    inputs = Inputs("concat", tokenizer=tokenizer, encoder=encoder)
    generator = random_generator("concat", options.side, inputs.width).to(DTYPES[dtype])
    condition = Condition(torch.zeros(1, dtype=torch.int64))

    def draw(model: Generator, read: Inputs) -> Callable[[], Tensor]:
        return lambda: sample(model, read, condition, seeds=[0], guidance=GUIDANCE)

    contestants = {"concat": draw(generator, inputs), "ids": draw(plain, Inputs("ids"))}
    seconds, _ = race(contestants, options.repeats)
    used = sum(x.numel() for module in (encoder.blocks, encoder.projector) for x in module.parameters())
    own = sum(x.numel() for x in plain.parameters()) - plain.config.codebook_size * plain.config.width
    cost = seconds["concat"] / seconds["ids"] - 1
    note = f"takes {cost:.0%} longer than ids; the encoder has {used / own:.0%} as many parameters"
    return Row(f"concat, {dtype}, batch 1", plain.config.positions / seconds["concat"], None, None, "", note)


def table_bytes(generator: Generator) -> int:
    """Return the bytes of the tables of ids and classes, of which a step reads a row."""
    tables = [module.weight for module in generator.modules() if isinstance(module, nn.Embedding)]
    return sum(x.numel() * x.element_size() for x in tables)


def memory_rate(device: str, repeats: int) -> float:
    """Return bytes a second of summing a gigabyte."""
    numbers = torch.ones(2**28, device=device)
    best = float("inf")
    for _ in range(3 * repeats):
        start = time.perf_counter()
        finished(numbers.sum())
        best = min(best, time.perf_counter() - start)
    return numbers.numel() * 4 / best


def finished(x: Tensor) -> Tensor:
    """Return x once it is there."""
    if x.is_cuda:
        torch.cuda.synchronize()
    return x


def official_generator(path: Path, generator: Generator, compiled: bool) -> Callable[[Tensor, int, float], Tensor]:
    """Return the official code on our weights, as its own scripts call it: classes, ids to draw, temperature -> ids."""
    sys.path.insert(0, str(path.absolute()))
    with contextlib.redirect_stdout(sys.stderr):
        from autoregressive.models.generate import generate  # type: ignore[import-not-found]
        from autoregressive.models.gpt import GPT_models  # type: ignore[import-not-found]
    weight = generator.head.weight
    sizes = {"vocab_size": 16384, "block_size": generator.config.positions, "num_classes": 1000, "cls_token_num": 1}
    model = GPT_models["GPT-B"](model_type="c2i", **sizes)
    model.load_state_dict(official_state(generator))
    model.to(weight.device, weight.dtype).eval()
    if compiled:
        model = torch.compile(model, mode="reduce-overhead", fullgraph=True)

    def draw(classes: Tensor, count: int, temperature: float) -> Tensor:
        with warnings.catch_warnings(action="ignore"):
            arguments = {"top_k": 0, "top_p": 1.0, "temperature": temperature or 1.0}
            ids: Tensor = generate(
                model, classes, count, cfg_scale=GUIDANCE, sample_logits=temperature > 0, **arguments
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


def table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| ids a second | ours | official | ours / official | target | floor | |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        official, ratio = (f"{row.official:.1f}", f"{row.ours / row.official:.2f}x") if row.official else ("-", "-")
        floor = f"{row.floor:.1f}" if row.floor else "-"
        cells = (row.what, f"{row.ours:.1f}", official, ratio, row.target or "-", floor, row.note)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
