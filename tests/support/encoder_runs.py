"""Small runs of `toklip train encoder` for tests: their data, their settings, and their files."""

import json
import math
import tarfile
from pathlib import Path
from typing import Any

import torch
from toklip_core.model import CLIP, CLIPConfig, TextTokenizer, TrunkConfig, VisionConfig
from toklip_core.tasks import EncoderTrainConfig
from torch import nn

from tests.core.conftest import picture
from tests.support.encoding import encode_with
from tests.support.small_models import SIZE, TRUNK, text_config, words

CAPTIONS = ["a red circle", "a blue square", "a green star above a red square", "the picture of a circle", "a photo"]

Source = dict[str, Any]


def small_teacher(seed: int, *, patch_size: int = 4, trunk: TrunkConfig = TRUNK, logit_scale: float = 10.0) -> CLIP:
    """With as many tokens as the tokenizer mean-colour, unless the patches are larger."""
    torch.manual_seed(seed)
    vision = VisionConfig(trunk=trunk, patch_size=patch_size)
    config = CLIPConfig(image_size=SIZE, resize="squash", vision=vision, text=text_config())
    clip = CLIP(config, TextTokenizer(config.text, words()))
    nn.init.constant_(clip.logit_scale, math.log(logit_scale))
    return clip.eval()


def write_world(folder: Path) -> None:
    """Write a teacher, twelve captioned pictures, the same in two tars, and their token store."""
    small_teacher(1).save_pretrained(folder / "teacher")
    (folder / "pictures").mkdir()
    (folder / "shards").mkdir()
    for number in range(12):
        picture(number).save(folder / f"pictures/{number:02}.png")
        (folder / f"pictures/{number:02}.txt").write_text(CAPTIONS[number % len(CAPTIONS)])
    files = sorted((folder / "pictures").iterdir())
    for shard in range(2):
        with tarfile.open(folder / f"shards/{shard:05}.tar", "w") as tar:
            for file in files[shard * 12 : shard * 12 + 12]:
                tar.add(file, file.name)
    encode(folder, folder / "store", teacher=folder / "teacher")


def encode(world: Path, store: Path, **changes: Any) -> Source:
    """Write a store of the pictures; return it as a source."""
    settings = {"tokenizer": "mean-colour", "image_size": SIZE, "resize": "crop"} | changes
    encode_with([world / "pictures"], store, **settings)
    return {"kind": "store", "store": str(store)}


def pictures(world: Path) -> Source:
    return {"kind": "pictures", "inputs": [str(world / "pictures")]}


def shards(world: Path) -> Source:
    return {"kind": "pictures", "inputs": [str(world / "shards/*.tar")]}


def stored(world: Path) -> Source:
    return {"kind": "store", "store": str(world / "store")}


def values(world: Path, source: Source, **changes: Any) -> dict[str, Any]:
    """Settings of a run; a table among the changes replaces the keys that it has."""
    found: dict[str, Any] = {
        "tokenizer": "mean-colour",
        "teacher": str(world / "teacher"),
        "image_size": SIZE,
        "data": [source],
        "losses": {"pooled_weight": 10.0},
        "run": {"steps": 4, "batch_size": 4, "learning_rate": 1e-3, "log_every": 1, "weight_decay": 0.1},
    }
    for name, value in changes.items():
        found[name] = found[name] | value if isinstance(found.get(name), dict) else value
    return found


def config(world: Path, source: Source, **changes: Any) -> EncoderTrainConfig:
    return EncoderTrainConfig.model_validate(values(world, source, **changes))


def write_toml(file: Path, settings: dict[str, Any]) -> Path:
    """Write settings of one source as a user would."""
    plain = {name: value for name, value in settings.items() if not isinstance(value, dict | list)}
    tables = {"[data]": settings["data"][0]} | {name: x for name, x in settings.items() if isinstance(x, dict)}
    rows = [_line(item) for item in plain.items()]
    for name, table in tables.items():
        rows += [f"[{name}]", *map(_line, table.items())]
    file.write_text("\n".join(rows) + "\n")
    return file


def _line(item: tuple[str, Any]) -> str:
    return f"{item[0]} = {json.dumps(item[1])}"


def lines(out: Path) -> list[dict[str, float]]:
    """Return the log."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(one: Path, other: Path) -> None:
    """The last checkpoints and the exported files, byte for byte; the logs but for the clock."""
    files = [*max((one / "checkpoints").iterdir()).iterdir(), *(one / "model").iterdir()]
    names = [file.relative_to(one) for file in files]
    assert len(names) == 7
    assert [name for name in names if (one / name).read_bytes() != (other / name).read_bytes()] == []
    logs = [[line | {"steps_per_second": 0} for line in lines(out)] for out in (one, other)]
    assert logs[0] == logs[1]
