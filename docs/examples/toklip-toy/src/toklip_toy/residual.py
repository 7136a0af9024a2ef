"""A tokenizer with four ids per position: each refines the colour that those before it give."""

from __future__ import annotations

from typing import Self

import torch
from toklip_core.embeddings import TableEmbedding
from toklip_core.pictures import grid_by_factor, refuse_pixels
from torch import Tensor, nn

from toklip_toy.grid import CELL, cell_colours, cube, mosaic, nearest


class ResidualTokenizer(nn.Module):
    """A tokenizer that encodes each cell of 4 x 4 pixels as four ids, whose colours are added.

    Each level has eight colours, half as bright as those of the level before it: 4 x 3 bits for 4096 colours.
    """

    def __init__(self) -> None:
        super().__init__()
        palettes = [cube(2) / 2 ** (level + 1) for level in range(4)]
        self.embedding = TableEmbedding(palettes, combine="sum")
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the grid (h, w) of ids; ValueError unless both sides are multiples of 4."""
        return grid_by_factor(height, width, CELL)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Return the ids (B, h, w, 4) of pixels (B, 3, H, W); ValueError if one is an integer, NaN or infinite."""
        refuse_pixels(pixels)
        self.grid(pixels.shape[2], pixels.shape[3])
        with torch.autocast(pixels.device.type, enabled=False):
            rest_Bhw3 = cell_colours(pixels)
            levels: list[Tensor] = []
            for level in range(4):
                palette_83 = self.embedding.rows(level)
                levels.append(nearest(rest_Bhw3, palette_83))
                rest_Bhw3 = rest_Bhw3 - palette_83[levels[-1]]
            return torch.stack(levels, dim=-1)

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """Return pixels (B, 3, H, W): a mosaic of the cells' colours; ValueError for an id out of range."""
        self.embedding.refuse_ids(ids)
        return mosaic(self.embedding(ids))
