"""An autoencoder and a quantizer as a frozen tokenizer: what every tokenizer of this package is.

    pixels (B, 3, H, W) -> autoencoder.latents -> (B, C, h, w) -> quantizer.search -> ids (B, h, w, Q)
    ids -> quantizer.embedding -> codes (B, h, w, C) -> autoencoder.reconstruct -> pixels (B, 3, H, W)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, Self

import torch
from toklip_core.embeddings import CodeEmbedding
from toklip_core.pictures import refuse_pixels
from toklip_core.weights import refuse_not_finite
from torch import Tensor, nn

from toklip_vq.quantizers import Quantizer

#: Positions that a GPU encodes or decodes at once: 16 pictures of 256 px in patches of 16 px, 64 of 64 px in 8 px.
_POSITIONS_AT_ONCE = 4096


class Autoencoder(Protocol):
    """From pixels to latents, and from codes to pixels; an ``nn.Module``."""

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the grid (h, w) of a picture; ValueError, with the sizes it takes, if it does not take this one."""

    def latents(self, pixels: Tensor) -> Tensor:
        """Return the latents (B, C, h, w), to compare with codes, of pixels (B, 3, H, W) in [-1, 1]."""

    def reconstruct(self, codes: Tensor) -> Tensor:
        """Return pixels (B, 3, H, W), near [-1, 1], of codes (B, h, w, C)."""


class AutoencoderTokenizer(nn.Module):
    """An autoencoder and a quantizer as a tokenizer plugin; see :class:`toklip_core.plugins.VQTokenizer`.

    Both are frozen, and always in evaluation mode. ``.to(torch.bfloat16)`` halves the precision of the autoencoder;
    codes and search stay in float32. On a GPU torch lets convolutions round to TF32: set
    ``torch.backends.cudnn.allow_tf32 = False`` if ids must equal those of a CPU. A CPU encodes and decodes pictures one
    by one, so that ids do not depend on the rest of the batch. A GPU takes several at once, because one of them does
    not fill it; there the rest of the batch can change how a latent is rounded, and so an id between two codes that
    are about as near.

    Args:
        autoencoder: an ``nn.Module``; its 4-D weights are laid out as channels_last.
        quantizer: an ``nn.Module``.
    """

    def __init__(self, autoencoder: Autoencoder, quantizer: Quantizer) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.quantizer = quantizer
        self.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # an encode is 1.1 times as fast as in NCHW on Zen 4
                module.to(memory_format=torch.channels_last)
        super().train(False)

    @property
    def embedding(self) -> CodeEmbedding:
        """From ids to codes."""
        return self.quantizer.embedding

    def train(self, mode: bool = True) -> Self:
        """Return the tokenizer unchanged: it always stays in evaluation mode."""
        return self

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the grid (h, w) of the ids of a picture of height x width pixels.

        Raises:
            ValueError: the autoencoder does not take this size; the message has those it takes.
        """
        return self.autoencoder.grid(height, width)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Return the ids (B, h, w, Q), int64, of pixels (B, 3, H, W) in [-1, 1].

        Raises:
            ValueError: ``pixels`` has another shape, a size that the autoencoder does not take, or an integer dtype, or
                a pixel or a latent is NaN or infinite.
        """
        refuse_pixels(pixels)
        grid = self.grid(int(pixels.shape[2]), int(pixels.shape[3]))
        levels = len(self.embedding.codebook_sizes)
        ids = torch.empty(len(pixels), *grid, levels, dtype=torch.int64, device=pixels.device)
        nearness = torch.empty(len(pixels), *grid, device=pixels.device)
        with torch.autocast(pixels.device.type, enabled=False):
            for some in _parts(ids):
                latents = self.autoencoder.latents(pixels[some]).movedim(1, -1)
                ids[some], nearness[some] = self.quantizer.search(latents)
        refuse_not_finite(nearness, "a latent")
        return ids

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """Return float32 pixels (B, 3, H, W), near [-1, 1], of ids (B, h, w, Q).

        Raises:
            ValueError: ``ids`` has another shape, an id is not in [0, K_q), or a decoded pixel is NaN or infinite.
        """
        if ids.ndim != 4 or 0 in ids.shape[1:3]:
            raise ValueError(f"got ids of shape {tuple(ids.shape)}; wanted (B, h, w, Q), with h and w of 1 or more")
        self.embedding.refuse_ids(ids)
        given = ids if len(ids) else ids.new_zeros(1, *ids.shape[1:])  # no pictures also have a size
        with torch.autocast(ids.device.type, enabled=False):
            maps = (self.embedding.code_map(given[some]) for some in _parts(given))
            pictures = [self.autoencoder.reconstruct(codes).float() for codes in maps]
        pixels = torch.cat(pictures)[: len(ids)]
        refuse_not_finite(pixels, "a decoded pixel")
        return pixels


def _parts(ids: Tensor) -> Iterator[slice]:
    """Yield slices of pictures with ids (B, h, w, Q) that are encoded or decoded at once."""
    # One by one on a CPU: ids do not depend on the rest of the batch, and activations stay in the processor's cache.
    at_once = 1 if ids.device.type == "cpu" else max(1, _POSITIONS_AT_ONCE // (ids.shape[1] * ids.shape[2]))
    for start in range(0, len(ids), at_once):
        yield slice(start, start + at_once)
