"""How hard Scenes is: linear read-outs of mean codes, colours and patches beside a small convolutional network.

    python results/scenes_probe.py

Scenes of one object; what is to be told is its class (64), its colour (8) and its shape (8). A read-out is multinomial
logistic regression on standardised features, one for each of the three, fitted by L-BFGS to its optimum on the training
scenes; its weight decay is the best of three on the scenes it is measured on, which favours it. The network has one
output a colour and one a shape, and sees other training scenes at every step.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from _runs import markdown, percent, put
from toklip_core.scenes import CLASSES, COLOURS, SHAPES, Scene, Scenes
from toklip_core.tokenizer import load_tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

TASKS = {"class": len(CLASSES), "colour": len(COLOURS), "shape": len(SHAPES)}
WEIGHT_DECAYS = (1e-5, 1e-4, 1e-3)
BATCH_SIZE = 64

Read = Callable[[Tensor], Tensor]


def main() -> None:
    """Print accuracies beside chance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", default="vqgan-tiny", help="see `toklip tokenizers`")
    parser.add_argument("--train", type=int, default=4000, help="training scenes of the read-outs")
    parser.add_argument("--test", type=int, default=1000, help="validation scenes to measure on")
    parser.add_argument("--steps", type=int, default=1000, help=f"steps of the network, {BATCH_SIZE} scenes each")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training scenes and of the network")
    parser.add_argument("--page", type=Path, help="a page whose table between the script's markers is replaced")
    run = parser.parse_args()

    train = with_labels(Scenes(run.train, run.seed, objects=1))
    test = with_labels(Scenes(run.test, run.seed, "validation", objects=1))
    readers = {
        "mean colour": mean_colour,
        "mean patch of 8 x 8 pixels": mean_patch,
        f"mean codes of {run.tokenizer}": mean_codes(run.tokenizer),
    }
    rows = {"chance": {task: 1 / count for task, count in TASKS.items()}}
    rows |= {f"linear read-out of the {name}": read_out(read, train, test) for name, read in readers.items()}
    network = trained_network(run.steps, run.seed)
    rows["a small convolutional network on the pixels"] = network_accuracy(network, test)
    header = ["", *(f"{task} ({count})" for task, count in TASKS.items())]
    lines = [[name, *(percent(row[task]) for task in TASKS)] for name, row in rows.items()]
    put([markdown(header, lines)], run.page, "scenes_probe")


def with_labels(scenes: Iterable[Scene]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return pixels (N, 3, size, size) in [-1, 1] and the labels (N,) of each task."""
    found = [(scene.rgb, scene.labels[0]) for scene in scenes]
    pixels = torch.from_numpy(np.stack([pixels for pixels, _ in found])).movedim(-1, 1)
    labels = torch.tensor([label for _, label in found])
    of_tasks = {"class": labels, "colour": labels // len(SHAPES), "shape": labels % len(SHAPES)}
    return pixels.float().div(127.5).sub(1).contiguous(), of_tasks


def mean_colour(pixels: Tensor) -> Tensor:
    """Return the mean colours (N, 3)."""
    return pixels.mean((2, 3))


def mean_patch(pixels: Tensor) -> Tensor:
    """Return the mean of the 8 x 8 patches (N, 192): the codes of a tokenizer without a bottleneck."""
    return F.unfold(pixels, 8, stride=8).mean(2)


def mean_codes(name: str) -> Read:
    """Return what takes pixels to the mean (N, C) of their codes."""
    tokenizer = load_tokenizer(name)

    def read(pixels: Tensor) -> Tensor:
        chunks = tqdm(torch.split(pixels, 32), desc="encode", unit="batch", leave=False)
        return torch.cat([tokenizer.embed(tokenizer.encode(chunk)).mean((1, 2)) for chunk in chunks])

    return read


def read_out(
    read: Read, train: tuple[Tensor, dict[str, Tensor]], test: tuple[Tensor, dict[str, Tensor]]
) -> dict[str, float]:
    """Return the accuracy of the best read-out of each task."""
    features, unseen = read(train[0]), read(test[0])
    mean, spread = features.mean(0), features.std(0).clamp(min=1e-6)
    features, unseen = (features - mean) / spread, (unseen - mean) / spread
    accuracies = {}
    for task, count in TASKS.items():
        heads = [fit_linear(features, train[1][task], count, decay) for decay in WEIGHT_DECAYS]
        accuracies[task] = max(share_right(head(unseen), test[1][task]) for head in heads)
    return accuracies


def share_right(logits: Tensor, labels: Tensor) -> float:
    """Return the accuracy of logits (N, classes)."""
    return float((logits.argmax(1) == labels).float().mean())


def fit_linear(features: Tensor, labels: Tensor, classes: int, weight_decay: float) -> nn.Linear:
    """Fit a logistic regression; the loss is convex, so L-BFGS from zero finds its optimum."""
    head = nn.Linear(features.shape[1], classes)
    for weights in head.parameters():
        nn.init.zeros_(weights)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(head(features), labels) + weight_decay * head.weight.square().sum()
        torch.autograd.backward(loss)
        return loss.item()

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return head.requires_grad_(False)


def trained_network(steps: int, seed: int) -> nn.Sequential:
    """Return a network of 0.25 million weights: pixels to 8 logits for colours and 8 for shapes."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for narrow, wide in pairwise((3, 16, 32, 64, 128)):
        layers += [nn.Conv2d(narrow, wide, 3, 2, 1), nn.BatchNorm2d(wide), nn.ReLU()]
        layers += [nn.Conv2d(wide, wide, 3, 1, 1), nn.BatchNorm2d(wide), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(128, len(COLOURS) + len(SHAPES)))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps, pct_start=0.1)
    # A seed of its own: the read-outs' scenes are others, and none is seen twice.
    scenes = Scenes(steps * BATCH_SIZE, seed + 1, objects=1)
    for step in tqdm(range(steps), desc="train", unit="step", leave=False):
        pixels, labels = with_labels([scenes[step * BATCH_SIZE + i] for i in range(BATCH_SIZE)])
        colour, shape = torch.split(model(pixels), [len(COLOURS), len(SHAPES)], 1)
        loss = F.cross_entropy(colour, labels["colour"]) + F.cross_entropy(shape, labels["shape"])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def network_accuracy(model: nn.Sequential, test: tuple[Tensor, dict[str, Tensor]]) -> dict[str, float]:
    """Return the accuracy of each task; a class is right if colour and shape are."""
    logits = torch.cat([model(chunk) for chunk in torch.split(test[0], 200)])
    colour, shape = torch.split(logits, [len(COLOURS), len(SHAPES)], 1)
    right = {"colour": colour.argmax(1) == test[1]["colour"], "shape": shape.argmax(1) == test[1]["shape"]}
    right["class"] = right["colour"] & right["shape"]
    return {task: float(which.float().mean()) for task, which in right.items()}


if __name__ == "__main__":
    main()
