"""Trainings by recipes of the packages, each made once, and tables of their figures over seeds."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple


class Training(NamedTuple):
    """A run of ``toklip train``, by one thread."""

    #: Such as "mllm".
    kind: str
    out: Path
    #: KEY=VALUE each, of the recipe scenes-tiny.
    settings: tuple[str, ...]


def arguments(description: str, *, steps: int) -> argparse.ArgumentParser:
    """Return the options that all scripts have: --out, --seeds, --steps and --jobs."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs"), help="of the trainings; finished ones are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=steps, help="of each training")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, one thread each")
    return parser


def train_all(trainings: Iterable[Training], jobs: int) -> None:
    """Train what is not finished, each by its own process; what was stopped goes on. A log lies beside each."""
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(_train, trainings))


def _train(training: Training) -> None:
    if (training.out / "model/config.json").is_file():
        return
    overrides = [word for setting in training.settings for word in ("--set", setting)]
    toklip = Path(sys.executable).with_name("toklip")
    command = [toklip, "train", training.kind, "scenes-tiny", "--out", training.out, *overrides]
    training.out.parent.mkdir(parents=True, exist_ok=True)
    with training.out.with_suffix(".log").open("w", encoding="utf-8") as log:
        # The other core has a training of its own.
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False).returncode
    if code:
        raise SystemExit(f"{training.out} ended with {code}: see {log.name}")


def measured(file: Path, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Return the figures in a JSON file, measured if it is not there; its name says by what arguments."""
    if not file.exists():
        beside = file.with_name(f".{file.name}.tmp")
        beside.write_text(json.dumps(measure(), indent=2), encoding="utf-8")
        beside.replace(file)
    found: dict[str, float] = json.loads(file.read_text("utf-8"))
    return found


def spread(values: Sequence[float], form: Callable[[float], str]) -> str:
    """Return mean (least to greatest)."""
    if len(values) == 1:
        return form(values[0])
    return f"{form(sum(values) / len(values))} ({form(min(values))} to {form(max(values))})"


def percent(share: float) -> str:
    """Return a share as it is printed."""
    return f"{100 * share:.1f} %"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows))
