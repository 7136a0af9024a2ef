"""A tokenizer without a network: each id is the mean colour of a cell, rounded to a palette."""

from __future__ import annotations

import itertools
from typing import Self

import torch
from toklip_core.pictures import refuse_pixels
from toklip_core.plugins import Weights
from toklip_core.weights import read_weights, source_name
from torch import Tensor, nn


def cube(levels: int = 4) -> Tensor:
    """Return a palette of levels**3 colours (K, 3) in [-1, 1]: every mix of evenly spaced red, green and blue."""
    steps = torch.linspace(-1, 1, levels).tolist()
    return torch.tensor(list(itertools.product(steps, repeat=3)))


class GridTokenizer(nn.Module):
    """A tokenizer that encodes each cell of f x f pixels as the id of the nearest palette colour.

    Args:
        palette: (K, 3), colours in [-1, 1].
        downsample_factor: f, the side of a cell in pixels.
    """

    palette: Tensor

    def __init__(self, palette: Tensor, *, downsample_factor: int = 4) -> None:
        super().__init__()
        self.downsample_factor = downsample_factor
        # A buffer moves with `to(device)` and is saved, but no optimizer ever sees it.
        self.register_buffer("palette", palette.float())
        self.train(False)

    @property
    def codebook_size(self) -> int:
        """K: the number of colours."""
        return self.palette.shape[0]

    @property
    def codebook_dim(self) -> int:
        """C: red, green and blue."""
        return self.palette.shape[1]

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: a tokenizer does not change while a model is trained on its ids."""
        return super().train(False)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Return the ids (B, h, w) of pixels (B, 3, f h, f w); ValueError if one is an integer, NaN or infinite."""
        refuse_pixels(pixels)
        # In half precision another colour may be the nearest: autocast must not reach the search.
        with torch.autocast(pixels.device.type, enabled=False):
            means_B3hw = nn.functional.avg_pool2d(pixels.float(), self.downsample_factor)
            differences_BhwK3 = means_B3hw.permute(0, 2, 3, 1).unsqueeze(-2) - self.palette.float()
            return differences_BhwK3.square().sum(dim=-1).argmin(dim=-1)

    def embed(self, ids: Tensor) -> Tensor:
        """Return the colours (..., 3) of ids (...)."""
        return self.palette[ids]

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """Return pixels (B, 3, f h, f w): a mosaic of the cells' colours."""
        colours_B3hw = self.embed(ids).float().permute(0, 3, 1, 2)
        return nn.functional.interpolate(colours_B3hw, scale_factor=self.downsample_factor, mode="nearest")


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
