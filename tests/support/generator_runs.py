"""Small runs of `toklip train generator` for tests: their data, their settings, and their files."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from toklip_gen.training import GeneratorTrainConfig

from tests.core.conftest import picture
from tests.support.encoding import encode_with
from tests.support.small_models import SIZE, small_toklip

CAPTIONS = ["a red circle", "a blue square", "a green star above a red square", "the picture of a circle", "a photo"]
TEXT = {"kind": "text", "length": 12}


def write_world(folder: Path) -> None:
    """Write a TokLIP, captioned pictures in folders of three classes, and their token stores, with crops and without.

    The tokenizer mean-colour must be registered.
    """
    small_toklip().save_pretrained(folder / "toklip")
    for number in range(12):
        place = folder / f"pictures/class {number % 3}/{number:02}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(place)
        place.with_suffix(".txt").write_text(CAPTIONS[number % len(CAPTIONS)])
    encode(folder, "store")
    encode(folder, "crops", augment="ten-crop")


def encode(world: Path, name: str, **changes: Any) -> None:
    settings = {"tokenizer": "mean-colour", "image_size": SIZE, "resize": "crop"} | changes
    encode_with([world / "pictures"], world / name, **settings)


def store(world: Path, name: str = "crops") -> dict[str, Any]:
    return {"kind": "store", "store": str(world / name)}


def values(world: Path, **changes: Any) -> dict[str, Any]:
    """Settings of a run; a table among the changes replaces the keys that it has, and None takes a key away."""
    found: dict[str, Any] = {
        "tokenizer": "mean-colour",
        "image_size": SIZE,
        "generator": {"width": 16, "depth": 2, "heads": 2, "hidden_width": 24, "features": "ids"},
        "condition": {"kind": "class", "classes": 3},
        "dropout": 0.1,
        "data": [store(world)],
        "run": {"steps": 4, "batch_size": 4, "learning_rate": 1e-2, "log_every": 1, "weight_decay": 0.1},
    }
    for name, value in changes.items():
        found[name] = found[name] | value if isinstance(found.get(name), dict) and name != "condition" else value
    return {name: value for name, value in found.items() if value is not None}


def concat(world: Path, **changes: Any) -> dict[str, Any]:
    """TokLIP's way, from captions: tokens at the input, its text tower as the condition."""
    own = {"toklip": str(world / "toklip"), "generator": {"features": "concat"}, "condition": TEXT}
    return values(world, **own | changes)


def config(settings: dict[str, Any]) -> GeneratorTrainConfig:
    return GeneratorTrainConfig.model_validate(settings)


def lines(out: Path) -> list[dict[str, float]]:
    """Return the log."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def last(out: Path) -> dict[str, torch.Tensor]:
    """Return the weights of the last checkpoint."""
    return load_file(max((out / "checkpoints").iterdir()) / "model.safetensors")


def assert_same_run(one: Path, other: Path) -> None:
    """The last checkpoints and the exported files, byte for byte; the logs but for the clock."""
    files = [*max((one / "checkpoints").iterdir()).iterdir(), *(one / "model").iterdir()]
    names = [file.relative_to(one) for file in files]
    assert [name for name in names if (one / name).read_bytes() != (other / name).read_bytes()] == []
    logs = [[line | {"steps_per_second": 0} for line in lines(out)] for out in (one, other)]
    assert logs[0] == logs[1]
