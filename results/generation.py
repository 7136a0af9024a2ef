"""What a small generator draws from captions of scenes, by what it reads of the ids so far: ids, codes, or with tokens.

    python results/generation.py

Each is the recipe `toklip train generator scenes-tiny` with a smaller network, other features and seeds, and fewer
steps, of two numbers, over a token store of 24,000 scenes on plain backgrounds, more than a run sees. Of captions of
validation scenes (combinations of colour and shape that training shows, in new scenes) and of held-out ones (each with
one that it never shows), on plain backgrounds, it prints: whether pictures show what is asked for, judged by pixels;
the Fréchet distance to those scenes on the features of clip-tiny; and the loss of the last tenth of the training. The
last rows have the same figures of the scenes, reconstructed by the tokenizer, and of pictures whose ids are random.
features.jpg in --out, or docs/pictures/features.jpg with --page, shows what ten captions become after the most steps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _runs import (
    OF_GENERATOR,
    Training,
    arguments,
    markdown,
    measured,
    percent,
    picture_file,
    plain_store,
    put,
    shortened,
    spread,
    train_all,
)
from PIL import Image
from toklip_core.pictures import to_picture, to_rgb
from toklip_core.scenes import Scenes
from toklip_core.tokenizer import Tokenizer, load_tokenizer
from toklip_gen.evaluation import (
    Measures,
    SamplingSettings,
    evaluate_on_scenes,
    frechet_distance,
    load_extractor,
    match_by_pixels,
    moments,
    scene_prompts,
)
from toklip_gen.evaluation.scene_match import Prompt
from toklip_gen.generator import ModelSettings, load_generator
from torch import Tensor
from torchvision.utils import make_grid

FEATURES = ("ids", "codes", "concat")
SPLITS = ("validation", "held-out")
CLAIMS = ("colour", "shape", "object", "count", "relation", "caption")
DISTANCE = "Fréchet distance"
TOKENIZER, TEACHER = "vqgan-tiny", "clip-tiny"

Runs = Mapping[tuple[int, str, int], Training]


def main() -> None:
    """Print a table, and write a picture."""
    parser = arguments(str(__doc__), steps=(150, 600))
    parser.add_argument("--captions", type=int, default=256, help="captions of each split")
    options = parser.parse_args()
    picture = picture_file(options, "features.jpg")
    runs = trainings(options, plain_store(options.out))
    train_all(runs.values(), options.jobs)
    put([table(runs, options)], options.page, "generation")
    longest = [runs[max(options.steps), features, options.seeds[0]].out for features in FEATURES]
    draw_captions([run / "model" for run in longest]).save(picture, quality=75, optimize=True)


def trainings(options: Any, store: Path) -> Runs:  # noqa: ANN401 - argparse's
    """Return the trainings by steps, features and seed."""
    return {
        (steps, features, seed): Training(
            "generator",
            options.out / f"generator-{features}-{steps}-steps-{seed}",
            (
                f"generator.features={features}",
                f"data.0.store={store}",
                f"run.log_every={max(1, steps // 10)}",
                *OF_GENERATOR,
                *shortened(steps, seed),
            ),
        )
        for steps in options.steps
        for features in FEATURES
        for seed in options.seeds
    }


def table(runs: Runs, options: Any) -> str:  # noqa: ANN401 - argparse's
    """Return what pictures show, by split, steps and features, beside what reconstructed scenes do."""
    rows = []
    losses = {key: last_loss(run.out) for key, run in runs.items()}
    for split in SPLITS:
        calls = {
            run.out / f"{split}-{options.captions}-captions.json": partial(
                figures, run.out / "model", options.captions, split
            )
            for run in runs.values()
        }
        found = dict(zip(runs, measured(calls, options.jobs), strict=True))
        for steps in options.steps:
            for features in FEATURES:
                keys = [(steps, features, seed) for seed in options.seeds]
                loss = spread([losses[key] for key in keys], "{:.3f}".format)
                rows.append([split, str(steps), features, loss, *cells([found[key] for key in keys])])
        ceiling = next(iter(found.values()))
        names = [f"reconstructed {claim}" for claim in CLAIMS]
        shown = [percent(ceiling[name]) if name in ceiling else "" for name in names]
        rows.append([split, "", "the scenes, reconstructed", "", *shown, ""])
        at_random = {
            options.out / f"random-ids-{split}-{options.captions}-captions-{seed}.json": partial(
                of_random_ids, options.captions, split, seed
            )
            for seed in options.seeds
        }
        rows.append([split, "", "ids drawn at random", "", *cells(measured(at_random, options.jobs))])
    return markdown(["captions", "steps", "features", "loss", *CLAIMS, DISTANCE], rows)


def cells(per_seed: Sequence[Mapping[str, float]]) -> list[str]:
    """Return what pictures show, and their distance, as spreads over the seeds."""
    shown = [spread([of[claim] for of in per_seed], percent) if claim in per_seed[0] else "" for claim in CLAIMS]
    return [*shown, spread([of[DISTANCE] for of in per_seed], "{:.4f}".format)]


def figures(generator: Path, captions: int, split: str) -> dict[str, float]:
    """What drawn and reconstructed pictures show, and how far the drawn ones are from the scenes."""
    measures, sampling = Measures(extractor=TEACHER), SamplingSettings(batch_size=64)
    report = evaluate_on_scenes(
        ModelSettings(generator), Scenes(captions, split=split), measures, sampling=sampling, progress=True
    )
    assert report.frechet is not None
    drawn, reconstructed = (report.match["pixels"][kind].as_json() for kind in ("drawn", "reconstructed"))
    return {
        **{claim: share for claim in CLAIMS if (share := drawn[claim]) is not None},
        **{f"reconstructed {claim}": share for claim in CLAIMS if (share := reconstructed[claim]) is not None},
        DISTANCE: report.frechet,
    }


def of_random_ids(captions: int, split: str, seed: int) -> dict[str, float]:
    """Return the figures of pictures whose ids are random, which show what the judge finds in noise."""
    tokenizer, prompts = load_tokenizer(TOKENIZER), scene_prompts(captions, split=split)
    height, width, _ = prompts[0].scene.rgb.shape
    grid = (captions, *tokenizer.grid(height, width))
    generator = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randint(size, grid, generator=generator) for size in tokenizer.codebook_sizes], -1)
    return figures_of_ids(tokenizer, ids, prompts)


@torch.no_grad()
def figures_of_ids(tokenizer: Tokenizer, ids: Tensor, prompts: Sequence[Prompt]) -> dict[str, float]:
    """Return what the pictures of ids show of captions, and their Fréchet distance to the scenes."""
    pixels = torch.cat([tokenizer.decode_clamped(part) for part in ids.split(64)])
    match = match_by_pixels(pixels, [prompt.claims for prompt in prompts]).as_json()
    extractor, scenes = load_extractor(TEACHER), torch.from_numpy(np.stack([prompt.scene.rgb for prompt in prompts]))
    drawn, real = (moments(extractor(rgb).features) for rgb in (to_rgb(pixels), scenes.movedim(-1, 1)))
    return {
        **{claim: share for claim in CLAIMS if (share := match[claim]) is not None},
        DISTANCE: frechet_distance(real, drawn),
    }


def draw_captions(generators: Sequence[Path]) -> Image.Image:
    """Return a row of pictures for each generator: the first ten captions of validation scenes, of the seeds 0 to 9."""
    texts = [prompt.text for prompt in scene_prompts(10, split="validation")]
    models = map(load_generator, generators)
    rows = [model.pixels(model.draw(texts, seeds=range(len(texts))).ids) for model in models]
    return to_picture(make_grid(torch.cat(rows), nrow=len(texts), pad_value=1.0))


def last_loss(run: Path) -> float:
    """The training's loss in its last tenth: the mean of what was logged there."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    logged = [(line["step"], line["loss/next_id"]) for line in lines if "loss/next_id" in line]
    last = logged[-1][0]
    losses = [loss for step, loss in logged if step > 0.9 * last]
    return float(sum(losses) / len(losses))


if __name__ == "__main__":
    main()
