"""The models that ship with the package. This module does not import torch."""

from __future__ import annotations

import json
from pathlib import Path

from toklip_core.plugins import NamedModel

#: Model that reads.
TINY_NAME = "toklip-mllm-tiny"
#: Model that reads and draws.
UNIFIED_NAME = "toklip-uni-tiny"
#: Name -> summary.
_SUMMARIES = {
    TINY_NAME: "Small model that answers questions about Scenes, built on toklip-tiny; ships with the package.",
    UNIFIED_NAME: "Small model that draws Scenes and answers questions about them; ships with the package.",
}
#: Name -> folder.
FOLDERS = {name: Path(__file__).parent / "models" / name for name in _SUMMARIES}


def published_models() -> list[NamedModel]:
    """Return the entries of the models for ``toklip models``."""
    return [_entry(name, folder) for name, folder in FOLDERS.items()]


def _entry(name: str, folder: Path) -> NamedModel:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    rows, columns = config["encoder"]["grid"]
    return NamedModel(
        name=name,
        kind="language model",
        summary=_SUMMARIES[name],
        size=(folder / "model.safetensors").stat().st_size,
        licence="Apache-2.0",
        package="toklip-mllm",
        image_size=config["image_size"],
        tokens=rows * columns,
        model_type=config["model_type"],
    )
