"""What tokens keep of their teacher, and what that takes: data, distillation, the teacher's weights, the causal mask.

    python results/semantics.py

Token stores of scenes with the features of clip-tiny, and for each seed encoders over them: the recipe `toklip train
encoder scenes-tiny` with fewer steps, whole and with one thing changed (two for random initial values, because the
projector is fitted to the teacher's). A share of the data is the first of the same
scenes. A store that is in --out already, store-COUNT of COUNT scenes and COUNT scenes of one object, is taken as it is.

Zero-shot accuracy on held-out scenes of one object among all 64 classes, and retrieval on held-out scenes of one to
three objects with four captions each. Colour and shape are those of the class that was named. The raw codes get a
linear map, of least squares, from the mean code of a picture to the teacher's feature of it, on training scenes, so
that they meet the texts in the same space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _runs import (
    Training,
    arguments,
    at_once,
    encode_once,
    markdown,
    measured,
    percent,
    put,
    shortened,
    spread,
    train_all,
)
from toklip_core.config import Compute
from toklip_core.evaluation import Matcher, class_features, measure_retrieval, picture_features
from toklip_core.model import CLIP, load_clip, load_model
from toklip_core.pictures import labelled_scenes, normalized, scene_pairs
from toklip_core.scenes import CLASSES, Scenes
from toklip_core.tokenizer import Tokenizer, load_tokenizer
from torch import Tensor
from torch.nn import functional as F


class Variant(NamedTuple):
    """The recipe with one thing changed."""

    label: str
    settings: tuple[str, ...] = ()
    #: One in so many of the scenes.
    thinned: int = 1


VARIANTS = {
    "full": Variant("tokens"),
    "fifth": Variant("tokens, 20 % of the scenes", thinned=5),
    "twentieth": Variant("tokens, 5 % of the scenes", thinned=20),
    "undistilled": Variant("tokens, no distillation", ("losses.pooled_weight=0",)),
    "unfitted": Variant("tokens, projector not fitted", ("projector_pictures=0",)),
    "random": Variant(
        "tokens, projector not fitted, random initial values", ("initial_values=random", "projector_pictures=0")
    ),
    "bidirectional": Variant("tokens, no causal mask", ("causal=false",)),
}
TOKENIZER, TEACHER = "vqgan-tiny", "clip-tiny"
FIGURES = ("top-1", "colour of it", "shape of it", "image to text R@1", "text to image R@1")
BATCH_SIZE = 100


def main() -> None:
    """Print two tables: the figures, and how much of the teacher's each keeps."""
    parser = arguments(str(__doc__), steps=300)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--scenes", type=int, default=12000, help="scenes of each kind, to train on")
    parser.add_argument("--held-out", type=int, default=1000, help="scenes of each kind to measure on")
    options = parser.parse_args()
    folders = trained(options)
    out, held_out, train = options.out, options.held_out, min(4000, 2 * options.scenes)
    file = partial("{}-on-{}-held-out.json".format)
    calls = {
        out / file(TEACHER, held_out): partial(of_model, TEACHER, held_out),
        out / file(f"mean-codes-of-{train}", held_out): partial(of_mean_codes, train, held_out),
        **{out / file(run.name, held_out): partial(of_model, run / "model", held_out) for run in folders.values()},
    }
    teacher, codes, *of_runs = measured(calls, options.jobs)
    found = dict(zip(folders, of_runs, strict=True))
    tokens = {VARIANTS[name].label: [found[name, seed] for seed in options.seeds] for name in options.variants}
    rows = {"teacher, pixels": [teacher], **tokens, "mean codes, mapped linearly": [codes]}
    shares = {
        label: [{name: of[name] / teacher[name] if teacher[name] else 0.0 for name in FIGURES} for of in row]
        for label, row in list(rows.items())[1:]
    }
    put([table("", rows), table("share of the teacher's", shares)], options.page, "semantics")


def table(corner: str, rows: Mapping[str, list[dict[str, float]]]) -> str:
    """Return label and spreads, a row a line."""
    lines = [[label, *(spread([one[name] for one in of], percent) for name in FIGURES)] for label, of in rows.items()]
    return markdown([corner, *FIGURES], lines)


def trained(options: Any) -> dict[tuple[str, int], Path]:  # noqa: ANN401 - argparse's
    """Make what is not there; return the encoders' runs by variant and seed."""
    out, jobs, steps = options.out, options.jobs, options.steps
    counts = {name: max(options.scenes // VARIANTS[name].thinned, 1) for name in options.variants}
    stores = {count: out / f"store-{count}" for count in set(counts.values())}
    words = ("--tokenizer", TOKENIZER, "--size", "64", "--batch-size", "128", "--teacher", TEACHER)
    at_once([partial(encode_once, store, scenes_of(count), *words) for count, store in stores.items()], jobs)
    runs = {
        (name, seed): out / f"encoder-{name}-{options.scenes}-{steps}-steps-{seed}"
        for name in options.variants
        for seed in options.seeds
    }
    train_all(
        [
            Training(
                "encoder",
                folder,
                (
                    f"data.0.store={stores[counts[name]]}",
                    "held_out.scenes=0",
                    *shortened(steps, seed),
                    *VARIANTS[name].settings,
                ),
            )
            for (name, seed), folder in runs.items()
        ],
        jobs,
    )
    return runs


def scenes_of(count: int) -> tuple[str, str]:
    """Inputs of `toklip encode`: so many scenes of one to three objects, and as many of one."""
    return f"scenes:train?count={count}", f"scenes:train?count={count}&objects=1&seed=1"


def of_model(model: Path | str, scenes: int) -> dict[str, float]:
    """The figures of a model."""
    return figures(load_model(model).eval(), scenes)


@torch.no_grad()
def of_mean_codes(train: int, held_out: int) -> dict[str, float]:
    """The figures of mean codes, mapped into the teacher's space by so many training scenes."""
    clip, tokenizer = load_clip(TEACHER).eval(), load_tokenizer(TOKENIZER)
    codes, features = pairs_for_training(tokenizer, clip, train)
    return figures(MeanCodes(tokenizer, clip, least_squares(codes, features)), held_out)


def figures(model: Matcher, scenes: int) -> dict[str, float]:
    """Zero-shot accuracy, of colour and shape as well, and R@1 both ways, on held-out scenes."""
    pairs = scene_pairs(Scenes(scenes, split="held-out", size=model.config.image_size))
    recall = measure_retrieval(model, pairs, Compute(batch_size=BATCH_SIZE))
    shares = [*named(model, scenes, "held-out"), recall.image_to_text["R@1"], recall.text_to_image["R@1"]]
    return dict(zip(FIGURES, shares, strict=True))


@torch.no_grad()
def named(model: Matcher, scenes: int, split: str) -> list[float]:
    """Shares of scenes of one object whose class is named, whose colour is, and whose shape is."""
    single = labelled_scenes(Scenes(scenes, split=split, size=model.config.image_size, objects=1))
    classes = class_features(model, single.names, ["{}"])
    words = [name.split() for name in CLASSES]
    hits = torch.zeros(3)
    for places, features in picture_features(model, single.pictures, [], Compute(batch_size=BATCH_SIZE)):
        for place, guess in zip(places, (features @ classes.T).argmax(1).tolist(), strict=True):
            (colour, shape), (true_colour, true_shape) = words[guess], words[single.labels[place]]
            right = colour == true_colour, shape == true_shape
            hits += torch.tensor([all(right), *right])
    return (hits / scenes).tolist()


@dataclass(frozen=True)
class MeanCodes:
    """Mean raw codes, mapped linearly into the teacher's space; texts by the teacher's tower."""

    tokenizer: Tokenizer
    teacher: CLIP
    weights: Tensor

    @property
    def config(self) -> Any:  # noqa: ANN401 - a tokenizer takes the same pictures
        """The teacher's preprocessing."""
        return self.teacher.config

    @property
    def logit_scale(self) -> Tensor:
        """The teacher's."""
        return self.teacher.logit_scale

    def image_features(self, pixels: Tensor) -> Tensor:
        """Return unit features (B, E) of pixels (B, 3, S, S)."""
        return F.normalize(with_one(mean_codes(self.tokenizer, pixels)) @ self.weights, dim=-1)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Return unit features (T, E)."""
        return self.teacher.text_features(texts)


def pairs_for_training(tokenizer: Tokenizer, teacher: CLIP, count: int) -> tuple[Tensor, Tensor]:
    """Mean codes and the teacher's features of training scenes, half of them of one object."""
    size = teacher.config.image_size
    found = [*Scenes(count // 2, size=size), *Scenes(count - count // 2, 1, size=size, objects=1)]
    codes, features = [], []
    for start in range(0, count, BATCH_SIZE):
        rgb = torch.stack([torch.from_numpy(scene.rgb) for scene in found[start : start + BATCH_SIZE]])
        pixels = normalized(rgb.movedim(-1, 1))
        codes.append(mean_codes(tokenizer, pixels))
        features.append(teacher.image_features(pixels))
    return torch.cat(codes), torch.cat(features)


def mean_codes(tokenizer: Tokenizer, pixels: Tensor) -> Tensor:
    """(B, 3, S, S) -> (B, C)."""
    return tokenizer.embed(tokenizer.encode(pixels)).flatten(1, 2).mean(1)


def with_one(codes: Tensor) -> Tensor:
    """Codes with a 1 behind them, for the intercept."""
    return torch.cat([codes, codes.new_ones(len(codes), 1)], dim=1)


def least_squares(codes: Tensor, features: Tensor) -> Tensor:
    """The linear map (C + 1, E) from codes (N, C) and a 1 to features (N, E)."""
    found: Tensor = torch.linalg.lstsq(with_one(codes), features).solution
    return found


if __name__ == "__main__":
    main()
