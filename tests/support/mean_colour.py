"""Fast and correct tokenizers for tests, of cells of 4 x 4 pixels, offered like those of a real plugin.

mean-colour has one id per position, the grey level; quarter-greys has four independent ones, residual-greys four
residual ones, and colour-bits one of 28 bits, for pictures of 32 x 32 pixels alone. The ids of pyramid-greys form a
pyramid.
"""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from toklip_core.embeddings import BitEmbedding, PyramidEmbedding, TableEmbedding
from toklip_core.pictures import grid_by_factor, grid_of_size, refuse_pixels
from toklip_core.plugins import TokenizerSpec, hookimpl
from toklip_core.tokenizer import Tokenizer
from toklip_core.weights import load_strict, read_weights
from torch import nn

LEVELS = 300  # more than a byte holds


class Frozen(nn.Module):
    """A tokenizer of cells of 4 x 4 pixels, as every tokenizer here is."""

    def train(self, mode=True):
        return super().train(False)

    def grid(self, height, width):
        return grid_by_factor(height, width, 4)

    @torch.no_grad()
    def encode(self, pixels):
        refuse_pixels(pixels)
        self.grid(*pixels.shape[2:])
        return self.ids_of(pixels.float())


def means(pixels, side):
    """The mean grey (B, H / side, W / side) of cells."""
    return nn.functional.avg_pool2d(pixels.mean(dim=1, keepdim=True), side)[:, 0]


def nearest(values, table):
    """The nearest entries of an evenly spaced table (K, 1)."""
    low, high = table[0, 0], table[-1, 0]
    return ((values - low) / (high - low) * (len(table) - 1)).round().clamp(0, len(table) - 1).long()


def enlarged(greys, side):
    """Pixels (B, 3, H, W) of greys (B, H / side, W / side)."""
    return greys[:, None].expand(-1, 3, -1, -1).repeat_interleave(side, 2).repeat_interleave(side, 3)


class MeanColour(Frozen):
    """Args: pause, seconds that encoding one picture takes longer, so that a kill meets it."""

    def __init__(self, pause=0.0, gamma=1.0):
        super().__init__()
        self.pause = pause
        self.embedding = TableEmbedding([torch.linspace(-1, 1, LEVELS).mul(gamma)[:, None]])
        self.register_buffer("gain", torch.tensor([1 / 3 + 2 / 3]))  # the network, which may be cast
        self.train()

    @property
    def levels(self):
        return self.embedding.rows()

    def ids_of(self, pixels):
        time.sleep(self.pause * len(pixels))
        greys = (means(pixels, 4) * self.gain.float() + 1) / 2 * (LEVELS - 1)
        return greys.round().clamp(0, LEVELS - 1).long()[..., None]

    @torch.no_grad()
    def decode(self, ids):
        return enlarged(self.embedding(ids)[..., 0], 4)


class QuarterGreys(Frozen):
    """Four independent ids of a position, the grey levels of its quarters, from codebooks of several sizes."""

    def __init__(self):
        super().__init__()
        self.embedding = TableEmbedding([torch.linspace(-1, 1, size)[:, None] for size in (LEVELS, 16, 5, 2)])
        self.train()

    def ids_of(self, pixels):
        quarters = nn.functional.pixel_unshuffle(means(pixels, 2)[:, None], 2).unbind(1)
        return torch.stack([nearest(q, self.embedding.rows(level)) for level, q in enumerate(quarters)], dim=-1)

    @torch.no_grad()
    def decode(self, ids):
        return enlarged(nn.functional.pixel_shuffle(self.embedding(ids).movedim(-1, 1), 2)[:, 0], 2)


class ResidualGreys(Frozen):
    """Four residual ids of a position: each refines the grey level of those before it eight times."""

    def __init__(self):
        super().__init__()
        tables = [torch.linspace(-1, 1, 8)[:, None] / 8**level for level in range(4)]
        self.embedding = TableEmbedding(tables, combine="sum")
        self.train()

    def ids_of(self, pixels):
        rest, ids = means(pixels, 4), []
        for level in range(4):
            ids.append(nearest(rest, self.embedding.rows(level)))
            rest = rest - self.embedding.rows(level)[ids[-1]][..., 0]
        return torch.stack(ids, dim=-1)

    @torch.no_grad()
    def decode(self, ids):
        return enlarged(self.embedding(ids)[..., 0], 4)


class ColourBits(Frozen):
    """An id of 28 bits: the signs of 16 greys and of 2 x 2 colours. Takes pictures of 32 x 32 pixels alone."""

    def __init__(self):
        super().__init__()
        self.embedding = BitEmbedding(28, scale=28**-0.5, order="big")
        self.train()

    def grid(self, height, width):
        return grid_of_size(height, width, size=(32, 32), grid=(8, 8))

    def ids_of(self, pixels):
        greys = nn.functional.pixel_unshuffle(pixels.mean(dim=1, keepdim=True), 4)
        colours = nn.functional.pixel_unshuffle(nn.functional.avg_pool2d(pixels, 2), 2)
        return self.embedding.ids_of(torch.cat([greys, colours], dim=1).movedim(1, -1) > 0)

    @torch.no_grad()
    def decode(self, ids):
        greys, colours = (self.embedding(ids).movedim(-1, 1) / self.embedding.scale).split([16, 12], dim=1)
        colours = nn.functional.pixel_shuffle(colours, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
        return (nn.functional.pixel_shuffle(greys, 4) + colours) / 2


class PyramidGreys(Frozen):
    """A pyramid of grey levels: maps of 1, 2, 4 and 8 cells a side. Takes pictures of 32 x 32 pixels alone."""

    def __init__(self):
        super().__init__()
        self.embedding = PyramidEmbedding(torch.linspace(-1, 1, LEVELS)[:, None], scales=(1, 2, 4, 8))
        self.train()

    def grid(self, height, width):
        return grid_of_size(height, width, size=(32, 32), grid=(1, 85))

    def ids_of(self, pixels):
        rest, ids = means(pixels, 4), []
        for scale in self.embedding.scales:
            scaled = nn.functional.adaptive_avg_pool2d(rest[:, None], scale)[:, 0]
            ids.append(nearest(scaled, self.embedding.rows()))
            codes = self.embedding.rows()[ids[-1]].movedim(-1, 1)
            rest = rest - nn.functional.interpolate(codes, size=rest.shape[1:], mode="bicubic")[:, 0]
        return torch.cat([found.flatten(1) for found in ids], dim=1)[:, None, :, None]

    @torch.no_grad()
    def decode(self, ids):
        return enlarged(self.embedding.code_map(ids)[..., 0], 4)


def factory(weights, pause=0.0):
    """Weights are a text file with a number, alone or in a folder; or the levels, in a safetensors file or by name."""
    if isinstance(weights, Mapping) or (weights and weights.suffix == ".safetensors"):
        tokenizer = MeanColour(pause)
        tensors = read_weights(weights)
        load_strict(tokenizer.embedding, tensors, source=weights, name_in_file=lambda name: "levels")
        return tokenizer
    if weights and weights.is_dir():
        weights = weights / "weights.txt"
    return MeanColour(pause, float(weights.read_text()) if weights else 1.0)


def mean_colour(gamma=1.0, weights=None):
    """Loaded, without the registry."""
    return Tokenizer("mean-colour", MeanColour(gamma=gamma) if weights is None else factory(weights), weights)


#: The tokenizers of several levels, or of many bits.
SEVERAL = {"quarter-greys": QuarterGreys, "residual-greys": ResidualGreys, "colour-bits": ColourBits}
#: Those whose codes are local, and the pyramid.
OTHERS = {**SEVERAL, "pyramid-greys": PyramidGreys}


def several(name):
    """One of OTHERS, loaded without the registry."""
    return Tokenizer(name, OTHERS[name]())


@hookimpl
def toklip_register_tokenizers():
    return [
        TokenizerSpec(name="mean-colour", factory=factory, summary="For tests.", image_size=32),
        TokenizerSpec(name="mean-colour-slow", factory=lambda w: factory(w, 0.002), summary="2 ms.", image_size=32),
        *(_spec(name, kind) for name, kind in OTHERS.items()),
    ]


def _spec(name, kind):
    tokenizer = kind()
    return TokenizerSpec(
        name=name,
        factory=lambda _: kind(),
        summary="For tests.",
        image_size=32,
        codebook_sizes=tokenizer.embedding.codebook_sizes,
        grid=tokenizer.grid(32, 32),
        fixed_size=kind.grid is not Frozen.grid,
    )


def install(folder: Path) -> Path:
    """Install this plugin into a folder, for sys.path: the module, and what an installer writes beside it."""
    info = folder / "mean_colour-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mean-colour\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[toklip]\nmean-colour = mean_colour\n")
    shutil.copy(__file__, folder / "mean_colour.py")
    return folder
