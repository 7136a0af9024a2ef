"""The model that ships with the package. This module does not import torch."""

from __future__ import annotations

import json
from pathlib import Path

from toklip_core.plugins import NamedModel

TINY_NAME = "toklip-mllm-tiny"
TINY = Path(__file__).parent / "models" / TINY_NAME


def tiny() -> NamedModel:
    """Return the entry of the model for ``toklip models``."""
    config = json.loads((TINY / "config.json").read_text("utf-8"))
    rows, columns = config["encoder"]["grid"]
    return NamedModel(
        name=TINY_NAME,
        kind="language model",
        summary="Small model that answers questions about Scenes, built on toklip-tiny; ships with the package.",
        size=(TINY / "model.safetensors").stat().st_size,
        licence="Apache-2.0",
        package="toklip-mllm",
        image_size=config["image_size"],
        tokens=rows * columns,
        model_type=config["model_type"],
    )
