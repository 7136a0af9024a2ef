"""A fast and correct tokenizer for tests: an id is the grey level of a 4 x 4 cell. It is offered like a real plugin."""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from toklip_core.pictures import refuse_pixels
from toklip_core.plugins import TokenizerSpec, hookimpl
from toklip_core.tokenizer import Tokenizer
from toklip_core.weights import load_strict, read_weights
from torch import nn

LEVELS = 300  # more than a byte holds


class MeanColour(nn.Module):
    """Args: pause, seconds that encoding one picture takes longer, so that a kill meets it."""

    codebook_size = LEVELS
    codebook_dim = 1
    downsample_factor = 4

    def __init__(self, pause=0.0, gamma=1.0):
        super().__init__()
        self.pause = pause
        self.register_buffer("levels", torch.linspace(-1, 1, LEVELS).mul(gamma)[:, None])

    @torch.no_grad()
    def encode(self, pixels):
        refuse_pixels(pixels)
        time.sleep(self.pause * len(pixels))
        means = nn.functional.avg_pool2d(pixels.float().mean(dim=1, keepdim=True), 4)[:, 0]
        return ((means + 1) / 2 * (LEVELS - 1)).round().clamp(0, LEVELS - 1).long()

    def embed(self, ids):
        return self.levels[ids]

    @torch.no_grad()
    def decode(self, ids):
        return (
            self.embed(ids).movedim(-1, 1).expand(-1, 3, -1, -1).float().repeat_interleave(4, 2).repeat_interleave(4, 3)
        )


def factory(weights, pause=0.0):
    """Weights are a text file with a number, alone or in a folder; or the levels, in a safetensors file or by name."""
    if isinstance(weights, Mapping) or (weights and weights.suffix == ".safetensors"):
        tokenizer = MeanColour(pause)
        load_strict(tokenizer, read_weights(weights), source=weights)
        return tokenizer
    if weights and weights.is_dir():
        weights = weights / "weights.txt"
    return MeanColour(pause, float(weights.read_text()) if weights else 1.0)


def mean_colour(gamma=1.0, weights=None):
    """Loaded, without the registry."""
    return Tokenizer("mean-colour", MeanColour(gamma=gamma) if weights is None else factory(weights), weights)


@hookimpl
def toklip_register_tokenizers():
    return [
        TokenizerSpec(name="mean-colour", factory=factory, summary="For tests.", image_size=32),
        TokenizerSpec(name="mean-colour-slow", factory=lambda w: factory(w, 0.002), summary="2 ms.", image_size=32),
    ]


def install(folder: Path) -> Path:
    """Install this plugin into a folder, for sys.path: the module, and what an installer writes beside it."""
    info = folder / "mean_colour-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mean-colour\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[toklip]\nmean-colour = mean_colour\n")
    shutil.copy(__file__, folder / "mean_colour.py")
    return folder
