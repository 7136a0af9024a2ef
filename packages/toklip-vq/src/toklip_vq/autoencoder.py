"""An autoencoder and a quantizer as a frozen tokenizer: what every tokenizer of this package is.

    pixels (B, 3, H, W) -> autoencoder.latents -> (B, C, h, w) -> quantizer.search -> ids (B, h, w, Q)
    ids -> quantizer.embedding -> codes (B, h, w, C) -> autoencoder.reconstruct -> pixels (B, 3, H, W)
"""

from __future__ import annotations

from typing import Protocol, Self

import torch
from toklip_core.embeddings import CodeEmbedding
from toklip_core.pictures import refuse_pixels
from toklip_core.weights import refuse_not_finite
from torch import Tensor, nn

from toklip_vq.quantizers import Quantizer


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
    ``torch.backends.cudnn.allow_tf32 = False`` if ids must equal those of a CPU.

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
            # One by one: ids do not depend on the rest of the batch, and activations stay in the processor's cache.
            for i in range(len(pixels)):
                latents = self.autoencoder.latents(pixels[i : i + 1]).movedim(1, -1)
                ids[i : i + 1], nearness[i : i + 1] = self.quantizer.search(latents)
        refuse_not_finite(nearness, "a latent")
        return ids

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """Return float32 pixels (B, 3, H, W), near [-1, 1], of ids (B, h, w, Q).

        Raises:
            ValueError: ``ids`` has another shape, an id is not in [0, K_q), or a decoded pixel is NaN or infinite.
        """
        if ids.ndim != 4:
            raise ValueError(f"got ids of shape {tuple(ids.shape)}; wanted (B, h, w, Q)")
        self.embedding.refuse_ids(ids)
        some = ids if len(ids) else ids.new_zeros(1, *ids.shape[1:])  # no pictures also have a size
        with torch.autocast(ids.device.type, enabled=False):
            pictures = [self.autoencoder.reconstruct(self.embedding.code_map(grid[None])).float() for grid in some]
        pixels = torch.cat(pictures)[: len(ids)]
        refuse_not_finite(pixels, "a decoded pixel")
        return pixels
