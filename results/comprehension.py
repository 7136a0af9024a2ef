"""What a small language model answers about scenes, by what it is given of a picture: codes, tokens, or both.

    python results/comprehension.py --out runs

Each is the recipe `toklip train mllm scenes-tiny` with other features and seeds and fewer steps. Exact match over all
questions of validation scenes (combinations of colour and shape that training shows, in new scenes) and of held-out
ones (each with a combination that it never shows), by greedy search.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from _runs import Training, arguments, markdown, measured, percent, put, spread, train_all
from toklip_core.config import Compute
from toklip_mllm.evaluation import evaluate_vqa

FEATURES = ("codes", "tokens", "concat")
SPLITS = ("validation", "held-out")
PRIOR = "always the most frequent answer"


def main() -> None:
    """Print a table."""
    parser = arguments(str(__doc__), steps=160)
    parser.add_argument("--scenes", type=int, default=300, help="of each split, with all their questions")
    options = parser.parse_args()
    folders = {
        (features, seed): options.out / f"mllm-{features}-{options.steps}-steps-{seed}"
        for features in FEATURES
        for seed in options.seeds
    }
    train_all(
        [
            Training("mllm", folder, (f"features={features}", f"run.seed={seed}", f"run.steps={options.steps}"))
            for (features, seed), folder in folders.items()
        ],
        options.jobs,
    )
    rows = []
    for split in SPLITS:
        calls = {
            folder / f"{split}-{options.scenes}.json": partial(figures, folder / "model", options.scenes, split)
            for folder in folders.values()
        }
        found = dict(zip(folders, measured(calls, options.jobs), strict=True))
        kinds = [name for name in next(iter(found.values())) if not name.startswith(PRIOR)]
        prior = next(iter(found.values()))
        rows.append([split, PRIOR, *(percent(prior[f"{PRIOR}, {kind}"]) for kind in kinds)])
        for features in FEATURES:
            values = [[found[features, seed][kind] for seed in options.seeds] for kind in kinds]
            rows.append([split, features, *(spread(of_kind, percent) for of_kind in values)])
    put([markdown(["scenes", "features", *kinds], rows)], options.page, "comprehension")


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
