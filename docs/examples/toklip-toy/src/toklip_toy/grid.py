"""A tokenizer without a network: each id is the mean colour of a cell, rounded to a palette."""

from __future__ import annotations

import itertools
from typing import Self

import torch
from toklip_core.embeddings import TableEmbedding
from toklip_core.pictures import grid_by_factor, refuse_pixels
from toklip_core.plugins import Weights
from toklip_core.weights import read_weights, source_name
from torch import Tensor, nn

#: Side of a cell in pixels.
CELL = 4


def cube(steps: int = 4) -> Tensor:
    """Return a palette of steps**3 colours (K, 3) in [-1, 1]: every mix of evenly spaced red, green and blue."""
    values = torch.linspace(-1, 1, steps).tolist()
    return torch.tensor(list(itertools.product(values, repeat=3)))


def cell_colours(pixels: Tensor) -> Tensor:
    """Return the mean colours (B, h, w, 3), float32, of the cells of pixels (B, 3, H, W)."""
    return nn.functional.avg_pool2d(pixels.float(), CELL).permute(0, 2, 3, 1)


def nearest(colours: Tensor, palette: Tensor) -> Tensor:
    """Return the ids (B, h, w) of the rows of a palette (K, 3) that are nearest to colours (B, h, w, 3)."""
    return (colours.unsqueeze(-2) - palette).square().sum(dim=-1).argmin(dim=-1)


def mosaic(colours: Tensor) -> Tensor:
    """Return pixels (B, 3, H, W) whose cells have these colours (B, h, w, 3)."""
    return nn.functional.interpolate(colours.permute(0, 3, 1, 2), scale_factor=CELL, mode="nearest")


class GridTokenizer(nn.Module):
    """A tokenizer that encodes each cell of 4 x 4 pixels as the id of the nearest palette colour.

    Args:
        palette: (K, 3), colours in [-1, 1].
    """

    def __init__(self, palette: Tensor) -> None:
        super().__init__()
        # Its table is a buffer: it moves with `to(device)` and is saved, but no optimizer ever sees it.
        self.embedding = TableEmbedding([palette])
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: a tokenizer does not change while a model is trained on its ids."""
        return super().train(False)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the grid (h, w) of ids; ValueError unless both sides are multiples of 4."""
        return grid_by_factor(height, width, CELL)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Return the ids (B, h, w, 1) of pixels (B, 3, H, W); ValueError if one is an integer, NaN or infinite."""
        refuse_pixels(pixels)
        self.grid(pixels.shape[2], pixels.shape[3])
        # In half precision another colour may be the nearest: autocast must not reach the search.
        with torch.autocast(pixels.device.type, enabled=False):
            return nearest(cell_colours(pixels), self.embedding.rows()).unsqueeze(-1)

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """Return pixels (B, 3, H, W): a mosaic of the cells' colours; ValueError for an id out of range."""
        self.embedding.refuse_ids(ids)
        return mosaic(self.embedding(ids))


def load_grid(weights: Weights | None) -> GridTokenizer:
    """Build the tokenizer with the palette of a file, or with 64 evenly spaced colours.

    Args:
        weights: a safetensors file that holds one tensor, ``palette`` (K, 3), colours in [-1, 1], or that tensor by
            name; None uses the 64.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds something else.
    """
    if weights is None:
        return GridTokenizer(cube())
    tensors = read_weights(weights)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    match shapes:
        case {"palette": (_, 3)} if len(shapes) == 1:
            return GridTokenizer(tensors["palette"])
    source = source_name(weights)
    raise ValueError(f"{source} holds {shapes}; a palette file holds one tensor, 'palette', of shape (K, 3)")
