"""What a small generator draws from captions of scenes, by what it reads of the ids so far: ids, codes, or with tokens.

    python results/generation.py --out runs

Each is the recipe `toklip train generator scenes-tiny` with other features and seeds and fewer steps, over a token
store of 24,000 scenes on plain backgrounds, more than a run sees. Of captions of validation scenes (combinations of
colour and shape that training shows, in new scenes) and of held-out ones (each with one that it never shows), on plain
backgrounds, it prints: whether pictures show what is asked for, judged by pixels; the Fréchet distance to those scenes
on the features of a teacher; and the loss, the mean of what is logged in a tenth of the steps.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from _runs import (
    Training,
    arguments,
    encode_once,
    markdown,
    measured,
    percent,
    put,
    spread,
    train_all,
    write_scenes_once,
)
from toklip_core.scenes import Scenes
from toklip_gen.evaluation import Measures, SamplingSettings, evaluate_on_scenes
from toklip_gen.generator import ModelSettings

FEATURES = ("ids", "codes", "concat")
SPLITS = ("validation", "held-out")
CLAIMS = ("colour", "shape", "object", "count", "relation", "caption")
DISTANCE = "Fréchet distance"


def main() -> None:
    """Print two tables."""
    parser = arguments(str(__doc__), steps=400)
    parser.add_argument("--store", type=Path, help="of the scenes; made in --out by default")
    parser.add_argument("--teacher", help="a model whose features are compared; trained in --out by default")
    parser.add_argument("--captions", type=int, default=256, help="of each split")
    options = parser.parse_args()
    out, seeds = options.out, options.seeds
    store, teacher = options.store or plain_store(out), options.teacher or str(out / "teacher-0/model")
    if options.teacher is None:
        train_all([Training("teacher", out / "teacher-0", ("run.seed=0",))], jobs=1)
    folders = {
        (features, seed): out / f"generator-{features}-{store.name}-{options.steps}-steps-{seed}"
        for features in FEATURES
        for seed in seeds
    }
    train_all(
        [
            Training(
                "generator",
                folder,
                (
                    f"generator.features={features}",
                    f"data.0.store={store}",
                    f"run.seed={seed}",
                    f"run.steps={options.steps}",
                ),
            )
            for (features, seed), folder in folders.items()
        ],
        options.jobs,
    )
    tables = [loss_table(folders, seeds), table_of_claims(folders, options, teacher)]
    put(tables, options.page, "generation")


def loss_table(folders: Mapping[tuple[str, int], Path], seeds: Sequence[int]) -> str:
    """Return the losses of runs by features and seed."""
    losses = {of: losses_of(folder) for of, folder in folders.items()}
    rows = []
    for features in FEATURES:
        steps = losses[features, seeds[0]]
        values = [[losses[features, seed][step] for seed in seeds] for step in steps]
        rows.append([features, *(spread(at_step, "{:.3f}".format) for at_step in values)])
    return markdown(["loss until step", *map(str, steps)], rows)


def table_of_claims(folders: Mapping[tuple[str, int], Path], options: Any, teacher: str) -> str:  # noqa: ANN401
    """Return what pictures show, by split and features, beside what reconstructed scenes do."""
    measured_by = f"{options.captions}-captions-" + re.sub(r"\W+", "-", teacher)
    rows = []
    for split in SPLITS:
        calls = {
            folder / f"{split}-{measured_by}.json": partial(figures, folder / "model", options.captions, split, teacher)
            for folder in folders.values()
        }
        found = dict(zip(folders, measured(calls, options.jobs), strict=True))
        for features in FEATURES:
            values = [found[features, seed] for seed in options.seeds]
            shown = [spread([value[claim] for value in values], percent) for claim in CLAIMS]
            rows.append([split, features, *shown, spread([value[DISTANCE] for value in values], "{:.4f}".format)])
        ceiling = next(iter(found.values()))
        rows.append([split, "the scenes, reconstructed", *(percent(ceiling[f"reconstructed {c}"]) for c in CLAIMS), ""])
    return markdown(["captions", "features", *CLAIMS, DISTANCE], rows)


def plain_store(out: Path) -> Path:
    """Return the recipe's store with half of its scenes, made if it is not there."""
    store = out / "plain-store-24000"
    if not store.exists():
        pictures = write_scenes_once(out / "plain-24000", Scenes(24000, background="plain"))
        encode_once(store, [pictures], "--tokenizer", "llamagen-tiny", "--size", "64", "--batch-size", "128")
    return store


def figures(generator: Path, captions: int, split: str, teacher: str) -> dict[str, float]:
    """What drawn and reconstructed pictures show, and how far the drawn ones are from the scenes."""
    measures, sampling = Measures(features=teacher), SamplingSettings(batch_size=64)
    report = evaluate_on_scenes(
        ModelSettings(generator), Scenes(captions, split=split), measures, sampling=sampling, progress=True
    )
    assert report.frechet is not None
    drawn, reconstructed = (report.match["pixels"][kind].as_json() for kind in ("drawn", "reconstructed"))
    return {
        **{claim: drawn[claim] or 0.0 for claim in CLAIMS},
        **{f"reconstructed {claim}": reconstructed[claim] or 0.0 for claim in CLAIMS},
        DISTANCE: report.frechet,
    }


def losses_of(run: Path) -> dict[int, float]:
    """The training's loss until a step: the mean of what was logged in each tenth of the run, by its last step.

    A tenth in which nothing was logged is left out.
    """
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    logged = [(line["step"], line["loss/next_id"]) for line in lines if "loss/next_id" in line]
    last = logged[-1][0]
    tenths = [last * tenth // 10 for tenth in range(11)]
    found = {}
    for before, until in pairwise(tenths):
        losses = {step: loss for step, loss in logged if before < step <= until}
        if losses:
            found[max(losses)] = sum(losses.values()) / len(losses)
    return found


if __name__ == "__main__":
    main()
