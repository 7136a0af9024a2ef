"""Weights that depend only on a tensor's official name and shape, by the rule of the goldens."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

GOLDENS = Path(__file__).parents[1] / "goldens"


def keys(golden: str) -> dict[str, tuple[int, ...]]:
    """Every name and shape of an official state dict."""
    return {name: tuple(shape) for name, shape in json.loads((GOLDENS / f"{golden}.keys.json").read_text()).items()}


def arrays(golden: str) -> dict[str, Tensor]:
    """The numbers that the official code gave."""
    with np.load(GOLDENS / f"{golden}.npz") as archive:
        return {name: torch.from_numpy(archive[name]) for name in archive.files}


def weights(golden: str) -> dict[str, Tensor]:
    """An official state dict under the rule."""
    return {name: deterministic(name, shape) for name, shape in keys(golden).items()}


def deterministic(name: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor under the rule."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    values = np.asarray(values, np.float32)
    if len(shape) >= 2:
        values /= np.float32(math.sqrt(math.prod(shape[1:])))
    elif name.endswith("bias"):
        values *= np.float32(0.1)
    else:
        values = 1 + np.float32(0.1) * values
    return torch.from_numpy(np.asarray(values, np.float32))


def constants(golden: str) -> dict[str, Tensor]:
    """An official state dict in which each tensor has one value, its own: shows where it ends up, and costs no time."""
    return {name: constant(name, shape) for name, shape in keys(golden).items()}


def constant(name: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor of one value, which tells its name."""
    return torch.tensor(zlib.crc32(name.encode()) / 2**32).expand(shape)


def small_weights(golden: str) -> dict[str, Tensor]:
    """The state dict of a small official model under the rule, from goldens/NAME.json.

    Entries that are one tensor have the values of the same name. Entries that the rule leaves alone are left out.
    """
    described = json.loads((GOLDENS / f"{golden}.json").read_text())
    return {
        name: deterministic(described.get("tied", {}).get(name, name), tuple(shape))
        for name, shape in described["keys"].items()
        if name not in described["left_as_built"]
    }
