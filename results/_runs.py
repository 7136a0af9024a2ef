"""Code that the scripts here share: scenes, stores and trainings, each made once, and tables of figures over seeds."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import toklip_core
import toklip_gen
import toklip_mllm
import toklip_vq
import torch


class Training(NamedTuple):
    """A run of ``toklip train``, by one thread."""

    #: Kind of training, such as "mllm".
    kind: str
    out: Path
    #: Changes of the recipe, KEY=VALUE each.
    settings: tuple[str, ...]
    #: Name or file of the recipe.
    recipe: str = "scenes-tiny"


#: Recipe of a language model that learns from nothing.
LANGUAGE = "scenes-tiny-stage-1"
#: Sizes of networks that are compared with one another: width, hidden width, blocks, heads.
WIDTH, HIDDEN, LAYERS, HEADS = 192, 512, 4, 3
#: The same as settings of a language model.
OF_LANGUAGE = (f"small.width={WIDTH}", f"small.hidden={HIDDEN}", f"small.layers={LAYERS}", f"small.heads={HEADS}")
#: The same as settings of a generator.
OF_GENERATOR = (
    f"generator.width={WIDTH}",
    f"generator.hidden_width={HIDDEN}",
    f"generator.depth={LAYERS}",
    f"generator.heads={HEADS}",
)


def shortened(steps: int, seed: int) -> tuple[str, ...]:
    """Settings of a training of so many steps: it warms up for an eighth of them, at most 50."""
    return f"run.steps={steps}", f"run.warmup_steps={min(50, steps // 8)}", "run.schedule=cosine", f"run.seed={seed}"


def arguments(description: str, *, steps: int | Sequence[int]) -> argparse.ArgumentParser:
    """Return the options that all scripts have: --out, --seeds, --steps, --jobs and --page.

    Args:
        description: what the script says of itself.
        steps: default number of steps, or of several numbers that are compared.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out",
        type=Path,
        help="folder of all runs; finished ones are kept. [default: runs/results-CHECKSUM, that of the models and "
        "recipes in the packages, so that nothing of earlier ones is kept]",
    )
    parser.set_defaults(out=Path("runs", f"results-{models_checksum()}"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    several = "+" if isinstance(steps, Sequence) else None
    parser.add_argument("--steps", type=int, nargs=several, default=steps, help="optimizer steps of each training")
    parser.add_argument("--jobs", type=int, default=2, help="number of processes at a time, with one thread each")
    parser.add_argument(
        "--page", type=Path, help="page in which to replace the tables between the script's markers, and its picture"
    )
    return parser


def picture_file(options: argparse.Namespace, name: str) -> Path:
    """Return the file of a script's picture: in the folder pictures beside that of the page, or else in --out."""
    folder = options.out if options.page is None else options.page.resolve().parents[1] / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    return Path(folder, name)


def models_checksum() -> str:
    """Return the first digits of the SHA-256 of all weights and recipes that ship with the packages."""
    folders = [Path(str(package.__file__)).parent for package in (toklip_core, toklip_vq, toklip_mllm, toklip_gen)]
    kinds = ("models/*/*.safetensors", "recipes/**/*.toml")
    files = [file for folder in folders for kind in kinds for file in folder.rglob(kind)]
    digest = hashlib.sha256()
    for name, file in sorted((f"{file.parent.name}/{file.name}", file) for file in files):
        digest.update(name.encode() + file.read_bytes())
    return digest.hexdigest()[:8]


def at_once(calls: Iterable[Callable[[], object]], jobs: int) -> None:
    """Call all functions, ``jobs`` of them at a time."""
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda call: call(), calls))


def train_all(trainings: Iterable[Training], jobs: int) -> None:
    """Run unfinished trainings, or resume them, each in its own process, with a log beside it."""
    at_once([partial(_train, training) for training in trainings], jobs)


def _train(training: Training) -> None:
    if not (training.out / "model/config.json").is_file():
        overrides = [word for setting in training.settings for word in ("--set", setting)]
        _toklip("train", training.kind, training.recipe, "--out", training.out, *overrides, log=training.out)


def scenes_store(out: Path) -> Path:
    """Return a token store of 24,000 scenes, for language models, made if it is not there."""
    store = out / "scenes-store-24000"
    encode_once(store, ["scenes:train?count=24000"], "--model", "toklip-tiny", "--batch-size", "128")
    return store


def questions(store: Path) -> str:
    """Return the entry of ``data`` that asks about the scenes of :func:`scenes_store`: every kind, also places."""
    return (
        f'{{kind = "scenes", count = 24000, store = "{store.as_posix()}", rounds = 3, independent = true, '
        "caption_share = 0.5}"
    )


def plain_store(out: Path) -> Path:
    """Return a token store of 24,000 scenes on plain backgrounds, for generators, made if it is not there."""
    store = out / "plain-store-24000"
    encode_once(store, ["scenes:train?count=24000&background=plain"], "--model", "toklip-tiny", "--batch-size", "128")
    return store


def encode_once(store: Path, inputs: Sequence[str], *options: str | Path) -> None:
    """Write a token store of pictures, with one thread, or resume it, unless it exists."""
    if not store.exists():
        part = store.with_name(f"{store.name}.part")
        _toklip("encode", *inputs, "--out", part, "--workers", "1", *options, log=store)
        part.rename(store)


def _toklip(*words: str | Path, log: Path) -> None:
    """Run a command, with its output in a file beside ``log`` that ends in .log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.with_name(f"{log.name}.log").open("w", encoding="utf-8") as said:
        # The other core has a command of its own.
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [Path(sys.executable).with_name("toklip"), *words]
        code = subprocess.run(command, stdout=said, stderr=subprocess.STDOUT, env=environment, check=False).returncode
    if code:
        raise SystemExit(f"toklip {' '.join(map(str, words))} ended with {code}: see {said.name}")


def measured(calls: Mapping[Path, Callable[[], dict[str, float]]], jobs: int) -> list[dict[str, float]]:
    """Return the figures in JSON files; figures of missing files are measured first.

    Each call runs in a process in which torch has one thread, so it must be picklable.
    """
    missing = {file: measure for file, measure in calls.items() if not file.exists()}
    for file in missing:  # before an hour is spent on what could not be written
        file.parent.mkdir(parents=True, exist_ok=True)
    # Spawned, because a fork of a process in which torch has threads may hang.
    with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        list(pool.map(_measure, missing, missing.values()))
    return [json.loads(file.read_text("utf-8")) for file in calls]


def _measure(file: Path, measure: Callable[[], dict[str, float]]) -> None:
    beside = file.with_name(f".{file.name}.tmp")
    beside.write_text(json.dumps(measure(), indent=2), encoding="utf-8")
    beside.replace(file)


def spread(values: Sequence[float], form: Callable[[float], str]) -> str:
    """Return "mean (lowest to highest)", with the percent sign only at the mean."""
    if len(values) == 1:
        return form(values[0])
    least, greatest = (form(value).removesuffix(" %") for value in (min(values), max(values)))
    return f"{form(sum(values) / len(values))} ({least} to {greatest})"


def percent(share: float) -> str:
    """Return a share as a percentage."""
    return f"{100 * share:.1f} %"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows))


def put(tables: Sequence[str], page: Path | None, name: str) -> None:
    """Print tables, and put them into a page between ``<!-- results: NAME -->`` and ``<!-- end -->``, if there is one.

    Raises:
        ValueError: the page has no such markers, or has them twice.
    """
    text = "\n\n".join(tables)
    print(text)
    if page is not None:
        begin, end = f"<!-- results: {name} -->\n", "<!-- end -->"
        before, *parts = page.read_text("utf-8").split(begin)
        if len(parts) != 1 or end not in parts[0]:
            raise ValueError(f"{page} has {len(parts)} times {begin.strip()!r} and an end; wanted one of each")
        beside = page.with_name(f".{page.name}.tmp")
        beside.write_text(f"{before}{begin}\n{text}\n\n{end}{parts[0].partition(end)[2]}", encoding="utf-8")
        beside.replace(page)
