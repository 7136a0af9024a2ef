"""One network that reads and draws scenes, beside networks of the same size that do one of both, by features.

    python results/unified.py

Four trainings for each of codes, tokens and concat as features, and each seed: the recipe `toklip train mllm
scenes-tiny-stage-1` on questions alone, or, with an image head, on questions and drawings (both) or on drawings alone;
and the generator of `toklip train generator scenes-tiny`, which has no features "tokens". All have blocks of one size
over token stores of 24,000 scenes, on plain backgrounds if they are drawn, and see as many pictures of a kind: the
network that does both takes --steps steps, half of them of a kind, and the others half as many steps.

It prints exact match over all questions, and how many drawn pictures show what their captions say, judged by pixels:
of validation scenes (combinations of colour and shape that training shows, in new scenes) and of held-out ones (each
with one that it never shows).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from _runs import (
    LANGUAGE,
    OF_GENERATOR,
    OF_LANGUAGE,
    Training,
    arguments,
    markdown,
    measured,
    percent,
    plain_store,
    put,
    questions,
    scenes_store,
    shortened,
    spread,
    train_all,
)
from safetensors import safe_open
from toklip_core.config import Compute
from toklip_core.drawing import Drawing, Guidance
from toklip_core.scenes import Scenes
from toklip_gen.evaluation import Measures, SamplingSettings, evaluate_on_scenes
from toklip_gen.generator import ModelSettings
from toklip_mllm.evaluation import evaluate_vqa

FEATURES = ("codes", "tokens", "concat")
SPLITS = ("validation", "held-out")
READING = "exact match"
CLAIMS = ("colour", "count", "caption")

#: Settings of a language model that also draws: its image head is like that of toklip-uni-tiny.
_HEAD = ('train=["connector", "language_model", "image_head"]', "image_head={level_blocks=1, guidance=3.0, top_k=3}")
#: How every picture is drawn: as by toklip-gen-tiny.
_DRAWING = Drawing(Guidance(3.0), top_k=3)


class Kind(NamedTuple):
    """A training that is compared, and what its model can do."""

    command: str
    recipe: str
    reads: bool
    draws: bool


KINDS = {
    "one network, both": Kind("mllm", LANGUAGE, reads=True, draws=True),
    "one network, reading alone": Kind("mllm", LANGUAGE, reads=True, draws=False),
    "one network, drawing alone": Kind("mllm", LANGUAGE, reads=False, draws=True),
    "generator": Kind("generator", "scenes-tiny", reads=False, draws=True),
}


def main() -> None:
    """Print a table."""
    parser = arguments(str(__doc__), steps=800)
    parser.add_argument("--features", nargs="+", choices=FEATURES, default=FEATURES)
    parser.add_argument("--scenes", type=int, default=300, help="scenes of each split, with all their questions")
    parser.add_argument("--captions", type=int, default=256, help="captions of each split")
    options = parser.parse_args()
    runs = trainings(options, scenes_store(options.out), plain_store(options.out))
    train_all(runs.values(), options.jobs)
    put([table(runs, options)], options.page, "unified")


def trainings(options: Any, shown: Path, drawn: Path) -> dict[tuple[str, str, int], Training]:  # noqa: ANN401 - argparse's
    """Return the trainings by kind, features and seed, over stores of the scenes that are shown and drawn."""
    found = {}
    for name, kind in KINDS.items():
        steps = options.steps if kind.reads and kind.draws else options.steps // 2
        for features in options.features:
            if kind.command == "generator" and features == "tokens":
                continue  # it has ids, codes and concat
            if kind.command == "generator":
                own = [*OF_GENERATOR, f"generator.features={features}", f"data.0.store={drawn}"]
            else:
                drawings = f'{{kind = "drawings", pictures = {{kind = "store", store = "{drawn.as_posix()}"}}}}'
                data = [questions(shown)] * kind.reads + [drawings] * kind.draws
                head = _HEAD if kind.draws else ()
                own = [*OF_LANGUAGE, *head, f"features={features}", f"data=[{', '.join(data)}]"]
            for seed in options.seeds:
                folder = options.out / f"unified-{name.replace(', ', '-').replace(' ', '-')}-{features}-{steps}-{seed}"
                settings = (*own, *shortened(steps, seed))
                found[name, features, seed] = Training(kind.command, folder, settings, kind.recipe)
    return found


def table(runs: Mapping[tuple[str, str, int], Training], options: Any) -> str:  # noqa: ANN401 - of the command line
    """Return what the models read and draw, by split, features and kind."""
    rows = []
    for split in SPLITS:
        measured_by = f"{split}-{options.scenes}-scenes-{options.captions}-captions.json"
        calls = {
            run.out / measured_by: partial(
                figures, run.out / "model", KINDS[kind], split, options.scenes, options.captions
            )
            for (kind, _, _), run in runs.items()
        }
        found = dict(zip(runs, measured(calls, options.jobs), strict=True))
        for features in options.features:
            for kind in KINDS:
                values = [found[kind, features, seed] for seed in options.seeds if (kind, features, seed) in found]
                if values:
                    cells = [_cell(values, name) for name in (READING, *CLAIMS)]
                    rows.append([split, features, kind, f"{values[0]['weights'] / 1e6:.2f} M", *cells])
    return markdown(["scenes", "features", "trained", "weights", READING, *CLAIMS], rows)


def _cell(values: list[dict[str, float]], name: str) -> str:
    return spread([value[name] for value in values], percent) if name in values[0] else ""


def figures(model: Path, kind: Kind, split: str, scenes: int, captions: int) -> dict[str, float]:
    """Number of trained weights, share of right answers, and shares of drawn pictures that show what is asked for."""
    found = {"weights": float(trained_weights(model))}
    if kind.reads:
        compute = Compute(batch_size=128, progress=True)
        report = evaluate_vqa(model, f"scenes:{split}?count={scenes}", compute=compute)
        assert report.exact_match is not None
        found[READING] = report.exact_match.right
    if kind.draws:
        sampling = SamplingSettings(_DRAWING, batch_size=64)
        drawn = evaluate_on_scenes(
            ModelSettings(model), Scenes(captions, split=split), Measures(None), sampling=sampling, progress=True
        ).match["pixels"]["drawn"].as_json()
        found |= {claim: share for claim in CLAIMS if (share := drawn[claim]) is not None}
    return found


def trained_weights(model: Path) -> int:
    """Return the number of weights in a model folder, without those of the frozen encoder and its codes."""
    with safe_open(model / "model.safetensors", "pt") as file:
        names = [name for name in file.keys() if not name.startswith("vision.")]
        sizes = [file.get_slice(name).get_shape() for name in names]
    return sum(map(prod, sizes))


if __name__ == "__main__":
    main()
