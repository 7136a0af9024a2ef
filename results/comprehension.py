"""What a small language model answers about scenes, by what it is given of a picture: codes, tokens, or both.

    python results/comprehension.py

Each is the recipe `toklip train mllm scenes-tiny-stage-1` with a smaller network, other features and seeds, and fewer
steps, of two numbers, over a token store of 24,000 scenes, more than a run sees. Exact match over all questions of
validation scenes (combinations of colour and shape that training shows, in new scenes) and of held-out ones (each with
a combination that it never shows), by greedy search.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from _runs import (
    LANGUAGE,
    OF_LANGUAGE,
    Training,
    arguments,
    markdown,
    measured,
    percent,
    put,
    questions,
    scenes_store,
    shortened,
    spread,
    train_all,
)
from toklip_core.config import Compute
from toklip_mllm.evaluation import evaluate_vqa

FEATURES = ("codes", "tokens", "concat")
SPLITS = ("validation", "held-out")
PRIOR = "always the most frequent answer"

Runs = Mapping[tuple[int, str, int], Training]


def main() -> None:
    """Print a table."""
    parser = arguments(str(__doc__), steps=(80, 240))
    parser.add_argument("--scenes", type=int, default=300, help="scenes of each split, with all their questions")
    options = parser.parse_args()
    runs = trainings(options, scenes_store(options.out))
    train_all(runs.values(), options.jobs)
    put([table(runs, options)], options.page, "comprehension")


def trainings(options: Any, store: Path) -> Runs:  # noqa: ANN401 - argparse's
    """Return the trainings by steps, features and seed."""
    return {
        (steps, features, seed): Training(
            "mllm",
            options.out / f"mllm-{features}-{steps}-steps-{seed}",
            (f"features={features}", f"data=[{questions(store)}]", *OF_LANGUAGE, *shortened(steps, seed)),
            LANGUAGE,
        )
        for steps in options.steps
        for features in FEATURES
        for seed in options.seeds
    }


def table(runs: Runs, options: Any) -> str:  # noqa: ANN401 - argparse's
    """Return the shares of right answers, by split, steps and features."""
    rows = []
    for split in SPLITS:
        calls = {
            run.out / f"{split}-{options.scenes}.json": partial(figures, run.out / "model", options.scenes, split)
            for run in runs.values()
        }
        found = dict(zip(runs, measured(calls, options.jobs), strict=True))
        prior = next(iter(found.values()))
        kinds = [name for name in prior if not name.startswith(PRIOR)]
        rows.append([split, "", PRIOR, *(percent(prior[f"{PRIOR}, {kind}"]) for kind in kinds)])
        for steps in options.steps:
            for features in FEATURES:
                values = [[found[steps, features, seed][kind] for seed in options.seeds] for kind in kinds]
                rows.append([split, str(steps), features, *(spread(of_kind, percent) for of_kind in values)])
    return markdown(["scenes", "steps", "features", *kinds], rows)


def figures(model: Path, scenes: int, split: str) -> dict[str, float]:
    """Shares of right answers, of all and by type, and what the most frequent answers reach."""
    report = evaluate_vqa(model, f"scenes:{split}?count={scenes}", compute=Compute(batch_size=128, progress=True))
    assert report.exact_match is not None
    shares = {"all": report.exact_match, **report.by_type}
    return {kind: share.right for kind, share in shares.items()} | {
        f"{PRIOR}, {kind}": share.prior for kind, share in shares.items()
    }


if __name__ == "__main__":
    main()
