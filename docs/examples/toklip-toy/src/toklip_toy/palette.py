"""Palettes that are chosen for a picture instead of being spaced evenly."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor


def choose_palette(picture: Path, colours: int) -> Tensor:
    """Return the colours (K, 3) in [-1, 1] that suit a picture, K <= colours."""
    with Image.open(picture) as image:
        chosen = image.convert("RGB").quantize(colours).getpalette() or []
    return torch.tensor(chosen).view(-1, 3).float() / 127.5 - 1


def save_palette(palette: Tensor, out: Path) -> None:
    """Write a palette as the file that ``--weights`` takes."""
    save_file({"palette": palette}, out)
