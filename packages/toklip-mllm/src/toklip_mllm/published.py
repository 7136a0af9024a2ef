"""The model that is in the package. Light: imports no torch."""

from __future__ import annotations

import json
from pathlib import Path

from toklip_core.plugins import NamedModel

TINY_NAME = "toklip-mllm-tiny"
TINY = Path(__file__).parent / "models" / TINY_NAME


def tiny() -> NamedModel:
    """Return what ``toklip models`` says of it."""
    config = json.loads((TINY / "config.json").read_text("utf-8"))
    rows, columns = config["encoder"]["grid"]
    return NamedModel(
        name=TINY_NAME,
        kind="language model",
        summary="Trained on questions about Scenes over toklip-tiny; in the package.",
        size=(TINY / "model.safetensors").stat().st_size,
        licence="Apache-2.0",
        package="toklip-mllm",
        image_size=config["image_size"],
        tokens=rows * columns,
    )
