"""Files of a small model in the layout of the official TokLIP."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from toklip_core.model import TokLIP, official_name


def official_state(model: TokLIP) -> dict[str, torch.Tensor]:
    """A model's tensors by the official names; those of its tokenizer, mean-colour, are among them."""
    state = {official_name(name): tensor for name, tensor in model.state_dict().items()}
    return state | {"visual.trunk.vq.levels": model.tokenizer.embedding.rows()}


def write_official(path: Path, model: TokLIP, *, without: Iterable[str] = (), **more: Any) -> Path:
    """Write a training run: tensors with ``module.`` before their names, numpy scalars and an optimizer beside them."""
    state = {f"module.{name}": tensor for name, tensor in official_state(model).items() if name not in without}
    moments = {"step": torch.tensor(7.0), "exp_avg": torch.zeros(1000), "exp_avg_sq": torch.zeros(1000)}
    content = {
        "epoch": np.float64(32),
        "step": np.int64(7),
        "name": "small",
        "state_dict": state,
        "optimizer": {"state": {0: moments}, "param_groups": [{"lr": np.float32(1e-5), "betas": (0.9, 0.95)}]},
        "scaler": {"scale": np.float32(65536), "growth_tracker": 3},
    }
    torch.save(content | more, path)
    return path
