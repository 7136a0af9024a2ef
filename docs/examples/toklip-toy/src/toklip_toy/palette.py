"""Palettes that are chosen from a picture instead of being spaced evenly."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file


def save_palette(picture: Path, out: Path, *, colours: int) -> int:
    """Write the colours that suit a picture as a tensor ``palette`` (K, 3) in [-1, 1]; return K <= colours."""
    with Image.open(picture) as image:
        chosen = image.convert("RGB").quantize(colours).getpalette() or []
    palette = torch.tensor(chosen).view(-1, 3).float() / 127.5 - 1
    save_file({"palette": palette}, out)
    return len(palette)
