"""Where the small family loses what pictures show: what can be read from pixels, codes, ids, and from each model.

    python results/small_family.py

Scenes of one object, of validation (combinations of colour and shape that training shows) and held out (ones that it
never shows). From pixels, codes and ids a convolutional network of one design reads colour and shape: six convolutions
over a grid of 8 x 8, trained on labels, on the same scenes. Pixels come as the patches that make up the grid, ids by an
embedding that is trained with the network. clip-tiny and toklip-tiny name the class among all 64 by their texts, and
toklip-mllm-tiny answers questions. A class is right if colour and shape are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _runs import arguments, markdown, measured, percent, put, spread
from scenes_probe import TASKS, with_labels
from semantics import TEACHER, TOKENIZER, named
from toklip_core.config import Compute
from toklip_core.model import load_model
from toklip_core.scenes import COLOURS, SHAPES, Scenes
from toklip_core.tokenizer import Tokenizer, load_tokenizer
from toklip_mllm.evaluation import evaluate_vqa
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

SPLITS = ("validation", "held-out")
BATCH_SIZE = 64
WIDTH = 128
#: Pixels of a cell of the grid, on a side.
CELL = 8

Read = Callable[[Tensor], Tensor]


def main() -> None:
    """Print a table."""
    parser = arguments(str(__doc__), steps=1500)
    parser.add_argument("--scenes", type=int, default=12000, help="scenes of one object, to train the networks on")
    parser.add_argument("--test", type=int, default=1000, help="scenes of each split to measure on")
    options = parser.parse_args()
    put([table(options)], options.page, "small_family")


def table(options: Any) -> str:  # noqa: ANN401 - argparse's
    """Return shares of right colours, shapes and classes: a row for each thing that is read."""
    networks = [(name, seed) for name in ("pixels", "codes", "ids") for seed in options.seeds]
    size = f"{options.scenes}-scenes-{options.steps}-steps"
    calls: dict[Path, Callable[[], dict[str, float]]] = {
        options.out / f"read-{name}-{size}-{seed}-on-{options.test}.json": partial(
            of_network, name, seed, options.scenes, options.steps, options.test
        )
        for name, seed in networks
    }
    models = {TEACHER: of_matcher, "toklip-tiny": of_matcher, "toklip-mllm-tiny": of_answers}
    for name, measure in models.items():
        calls[options.out / f"{name}-on-{options.test}-single.json"] = partial(measure, name, options.test)
    found = measured(calls, options.jobs)
    rows = {
        "a network on pixels": found[: len(options.seeds)],
        "a network on codes": found[len(options.seeds) : 2 * len(options.seeds)],
        "a network on ids": found[2 * len(options.seeds) : len(networks)],
        f"{TEACHER}, from pixels": [found[-3]],
        "toklip-tiny, from ids": [found[-2]],
        "toklip-mllm-tiny, asked": [found[-1]],
    }
    columns = [(split, task) for split in SPLITS for task in TASKS]
    lines = [
        [
            label,
            *(
                spread([of[f"{split} {task}"] for of in values], percent) if f"{split} {task}" in values[0] else ""
                for split, task in columns
            ),
        ]
        for label, values in rows.items()
    ]
    return markdown(["read from", *(f"{task}, {split}" for split, task in columns)], lines)


def of_network(name: str, seed: int, scenes: int, steps: int, test: int) -> dict[str, float]:
    """Train a network on pixels, codes or ids; return its accuracies by split and task."""
    torch.manual_seed(seed)
    tokenizer = load_tokenizer(TOKENIZER)
    read = {"pixels": patches, "codes": partial(codes, tokenizer), "ids": partial(ids, tokenizer)}[name]
    pixels, labels = with_labels(Scenes(scenes, seed, objects=1))
    inputs = in_chunks(read, pixels)
    spread_of = inputs.float().std() if inputs.is_floating_point() else torch.tensor(1.0)
    model = network(tokenizer.codebook_sizes if name == "ids" else (), inputs.shape[-1])
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    for _ in tqdm(range(steps), desc=name, unit="step", leave=False):
        rows = torch.randint(scenes, (BATCH_SIZE,))
        colour, shape = heads(model(inputs[rows] / spread_of if inputs.is_floating_point() else inputs[rows]))
        loss = F.cross_entropy(colour, labels["colour"][rows]) + F.cross_entropy(shape, labels["shape"][rows])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    return accuracies(model.eval(), read, spread_of, test)


@torch.no_grad()
def accuracies(model: nn.Module, read: Read, spread_of: Tensor, test: int) -> dict[str, float]:
    """Shares of right colours, shapes and classes of each split."""
    found = {}
    for split in SPLITS:
        pixels, labels = with_labels(Scenes(test, 0, split, objects=1))
        inputs = in_chunks(read, pixels)
        logits = in_chunks(model, inputs / spread_of if inputs.is_floating_point() else inputs)
        right = {
            task: guess.argmax(1) == labels[task]
            for task, guess in zip(("colour", "shape"), heads(logits), strict=True)
        }
        right["class"] = right["colour"] & right["shape"]
        found |= {f"{split} {task}": float(which.float().mean()) for task, which in right.items()}
    return found


class _LevelTables(nn.Module):
    """A sum of learned vectors: ids (B, h, w, Q) to (B, h, w, C)."""

    def __init__(self, codebook_sizes: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.Embedding(size, width) for size in codebook_sizes)

    def forward(self, found: Tensor) -> Tensor:
        return torch.stack([level(found[..., at]) for at, level in enumerate(self.levels)]).sum(0)


class _ChannelsFirst(nn.Module):
    def forward(self, found: Tensor) -> Tensor:
        return found.movedim(-1, 1)


def network(codebook_sizes: tuple[int, ...], channels: int) -> nn.Sequential:
    """Return a network from a grid (B, h, w, C), or ids (B, h, w, Q), to logits of colours and shapes."""
    layers: list[nn.Module] = [_LevelTables(codebook_sizes, WIDTH)] if codebook_sizes else []
    layers.append(_ChannelsFirst())
    width = WIDTH if codebook_sizes else channels
    for _ in range(6):
        layers += [nn.Conv2d(width, WIDTH, 3, 1, 1), nn.BatchNorm2d(WIDTH), nn.ReLU()]
        width = WIDTH
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(WIDTH, len(COLOURS) + len(SHAPES)))


def heads(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of colours, and of shapes."""
    colour, shape = torch.split(logits, [len(COLOURS), len(SHAPES)], 1)
    return colour, shape


def in_chunks(read: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """Return what is read, some rows at a time."""
    return torch.cat([read(chunk) for chunk in torch.split(rows, 128)])


def patches(pixels: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) to (B, h, w, 192): a cell has its pixels."""
    return F.pixel_unshuffle(pixels, CELL).movedim(1, -1)


def ids(tokenizer: Tokenizer, pixels: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) to ids (B, h, w, Q)."""
    return tokenizer.encode(pixels)


def codes(tokenizer: Tokenizer, pixels: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) to codes (B, h, w, C)."""
    return tokenizer.embed(tokenizer.encode(pixels))


def of_matcher(name: str, scenes: int) -> dict[str, float]:
    """Return the shares of scenes whose class a CLIP or TokLIP names correctly, by split and task."""
    model = load_model(name).eval()
    return {
        f"{split} {task}": share
        for split in SPLITS
        for task, share in zip(TASKS, named(model, scenes, split), strict=True)
    }


def of_answers(name: str, scenes: int) -> dict[str, float]:
    """Return the shares of questions about colour and shape that a language model answers correctly, by split."""
    compute, found = Compute(batch_size=128, progress=True), {}
    for split in SPLITS:
        shares = evaluate_vqa(name, f"scenes:{split}?count={scenes}&objects=1", compute=compute).by_type
        found |= {f"{split} {task}": shares[task].right for task in ("colour", "shape")}
    return found


if __name__ == "__main__":
    main()
