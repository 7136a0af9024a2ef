"""Open-MAGVIT2's tokenizers, whose codes are the signs of 14 or 18 channels, from the published Lightning files.

    pixels (B, 3, H, W) -> encoder -> latents (B, C, h, w) -> their signs, C bits -> id of the position
    id -> C numbers, 1 or -1 (B, h, w, C) -> decoder -> pixels (B, 3, H, W)

The first channel is the lowest bit of an id. Such a file has the weights twice, see
:mod:`toklip_vq.published.lightning`.

Shape letters: B batch, H and W picture sides, f = 2^(levels - 1), h = H/f, w = W/f, C bits.

Source: Luo et al., https://arxiv.org/abs/2409.04410; sizes and names of TencentARC/SEED-Voken,
configs/Open-MAGVIT2/gpu and src/Open_MAGVIT2/modules.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
import torch.nn.functional as F
from toklip_core.embeddings import BitEmbedding
from toklip_core.pictures import grid_by_factor
from toklip_core.plugins import Weights
from toklip_core.weights import without_values
from torch import Tensor, nn

from toklip_vq.autoencoder import AutoencoderTokenizer
from toklip_vq.published.lightning import load_lightning
from toklip_vq.published.names import published_name
from toklip_vq.quantizers import BitQuantizer
from toklip_vq.towers import ResidualBlock, affine, convolve, group_norm, normalize


class OpenMAGVIT2Config(NamedTuple):
    """The sizes of an Open-MAGVIT2 tokenizer."""

    #: Number of bits of an id, one per channel of the latents.
    bits: int = 18
    #: Channels of the level at full resolution.
    channels: int = 128
    #: Channels of each level as a multiple of ``channels``; every level after the first halves the resolution.
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    #: Residual blocks of each level and of the middle, in the encoder and in the decoder.
    blocks_per_resolution: int = 4


class OpenMAGVIT2(nn.Module):
    """The two towers; between them are signs and no weights."""

    def __init__(self, config: OpenMAGVIT2Config) -> None:
        super().__init__()
        widths = tuple(config.channels * multiplier for multiplier in config.channel_multipliers)
        self.downsample_factor = 2 ** (len(widths) - 1)
        self.encoder = Encoder(widths, config.channels, config.blocks_per_resolution, config.bits)
        self.decoder = Decoder(widths[::-1], config.blocks_per_resolution, config.bits)

    def tokenizer(self) -> AutoencoderTokenizer:
        """Return the frozen tokenizer, which takes over the towers."""
        return AutoencoderTokenizer(self, BitQuantizer(BitEmbedding(self.decoder.conv_in.in_channels)))

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the grid (h, w) of a picture; ValueError unless its sides are multiples of f and one is larger."""
        grid = grid_by_factor(height, width, self.downsample_factor)
        _refuse_one_position(grid)
        return grid

    def latents(self, pixels: Tensor) -> Tensor:
        """Return the latents (B, C, h, w), whose signs are the bits, of pixels (B, 3, H, W) in [-1, 1]."""
        latents: Tensor = self.encoder(pixels.to(self.encoder.conv_in.weight.dtype))
        return latents

    def reconstruct(self, codes: Tensor) -> Tensor:
        """Return pixels (B, 3, f h, f w), near [-1, 1], of codes (B, h, w, C) of 1 and -1; ValueError if h w is 1."""
        _refuse_one_position((codes.shape[1], codes.shape[2]))
        pixels: Tensor = self.decoder(codes.movedim(-1, 1).to(self.decoder.conv_in.weight.dtype))
        return pixels


class Encoder(nn.Module):
    """Tower from pixels (B, 3, H, W) to latents (B, C, H/f, W/f); widths from full resolution down."""

    def __init__(self, widths: tuple[int, ...], channels: int, blocks: int, bits: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.levels = nn.ModuleList()
        for i, width in enumerate(widths):
            level = Level((widths[i - 1] if i else channels), width, blocks)
            if i < len(widths) - 1:
                level.downsample = nn.Conv2d(width, width, 3, stride=2, padding=1)
            self.levels.append(level)
        self.middle = _blocks(widths[-1], widths[-1], blocks)
        self.norm_out = group_norm(32, widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], bits, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return latents (B, C, H/f, W/f) of pixels (B, 3, H, W)."""
        x = self.conv_in(pixels)
        for level in self.levels:
            x = level(x)
        latents: Tensor = self.conv_out(F.silu(normalize(self.middle(x), self.norm_out)))
        return latents


class Decoder(nn.Module):
    """Tower from codes (B, C, h, w) of 1 and -1 to pixels (B, 3, f h, f w); widths from the lowest resolution up."""

    def __init__(self, widths: tuple[int, ...], blocks: int, bits: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(bits, widths[0], 3, padding=1)
        self.middle = _blocks(widths[0], widths[0], blocks)
        self.levels = nn.ModuleList()
        for i, width in enumerate(widths):
            before = widths[max(i - 1, 0)]
            level = Level(before, width, blocks)
            level.adaptive = AdaptiveNorm(before, bits)
            if i < len(widths) - 1:
                level.upsample = nn.Conv2d(width, 4 * width, 3, padding=1)
            self.levels.append(level)
        self.norm_out = group_norm(32, widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, codes: Tensor) -> Tensor:
        """Return pixels (B, 3, f h, f w) of codes (B, C, h, w)."""
        x = self.middle(self.conv_in(codes))
        for level in self.levels:
            x = level(x, codes)
        return convolve(x, self.norm_out, self.conv_out)


class Level(nn.Module):
    """Residual blocks at one resolution, after an adaptive norm in the decoder, and a change of resolution."""

    def __init__(self, width_in: int, width: int, blocks: int) -> None:
        super().__init__()
        self.adaptive: AdaptiveNorm | None = None
        self.blocks = _blocks(width_in, width, blocks)
        self.downsample: nn.Conv2d | None = None
        self.upsample: nn.Conv2d | None = None

    def forward(self, x: Tensor, codes: Tensor | None = None) -> Tensor:
        """Return the result of the level for x (B, width_in, H, W); the decoder passes the codes (B, C, h, w).

        Without gradients x may be overwritten.
        """
        if self.adaptive is not None and codes is not None:
            x = self.adaptive(x, codes)
        x = self.blocks(x)
        if self.downsample is not None:
            x = self.downsample(x)
        if self.upsample is not None:
            x = depth_to_space(self.upsample(x))
        return x


class AdaptiveNorm(nn.Module):
    """A group norm that is scaled and shifted by what the codes of the whole picture have in common."""

    def __init__(self, width: int, bits: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, width, eps=1e-6, affine=False)
        self.gamma = nn.Linear(bits, width)
        self.beta = nn.Linear(bits, width)

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        """Return the normalised x (B, width, H, W), given codes (B, C, h, w) with more than one position.

        Without gradients x may be overwritten.
        """
        positions_BCN = codes.flatten(2)
        deviation_BC = (positions_BCN.var(dim=-1) + 1e-6).sqrt()
        gamma = self.gamma(deviation_BC)[:, :, None, None]
        beta = self.beta(positions_BCN.mean(dim=-1))[:, :, None, None]
        if torch.is_grad_enabled() or x.device.type != "cpu":
            return torch.addcmul(beta, self.norm(x), gamma)
        scale, shift = affine(x, self.norm)
        return torch.addcmul(beta + gamma * shift, x, gamma * scale, out=x)


def depth_to_space(x: Tensor) -> Tensor:
    """Return x (B, 4 C, H, W) as (B, C, 2 H, 2 W): channel (2 a + b) C + c becomes channel c of the pixel (a, b).

    ``torch.pixel_shuffle`` takes channel 4 c + 2 a + b instead.
    """
    batch, channels, height, width = x.shape
    x_BHWabC = x.permute(0, 2, 3, 1).reshape(batch, height, width, 2, 2, channels // 4)
    x_BHaWbC = x_BHWabC.transpose(2, 3)
    return x_BHaWbC.reshape(batch, 2 * height, 2 * width, channels // 4).permute(0, 3, 1, 2)


def _refuse_one_position(grid: tuple[int, int]) -> None:
    if grid == (1, 1):
        raise ValueError("got a picture of a single id; the decoder compares the ids of a picture: take a larger one")


def _blocks(width_in: int, width: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(width_in if i == 0 else width, width, 32, bias=False) for i in range(blocks)))


#: Published sizes: 115 and 112 million weights.
OPEN_MAGVIT2_CONFIGS = {
    "256": OpenMAGVIT2Config(),
    "128": OpenMAGVIT2Config(channel_multipliers=(1, 2, 2, 4)),
    "16384-pretrain": OpenMAGVIT2Config(bits=14),
    "262144-pretrain": OpenMAGVIT2Config(),
}


def load_open_magvit2(
    weights: Weights | str, config: OpenMAGVIT2Config, *, averaged: bool = True
) -> AutoencoderTokenizer:
    """Return an Open-MAGVIT2 tokenizer with the weights of a file: .ckpt as published, or its ``state_dict``.

    Args:
        weights: the file, or tensors by its names.
        config: sizes.
        averaged: take the averaged weights (the published figures), or the raw ones.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or does not fit.
    """
    with without_values():
        towers = OpenMAGVIT2(config)
    levels = len(config.channel_multipliers)
    load_lightning(towers, weights, lambda name: open_magvit2_name(name, levels), averaged=averaged)
    return towers.tokenizer()


#: Our names -> the published ones, applied in this order; the levels of the decoder are counted in
#: :func:`open_magvit2_name`.
_NAMES = (
    (r"^encoder\.levels\.", "encoder.down."),
    (r"\.blocks\.", ".block."),
    (r"\.middle\.", ".mid_block."),
    (r"\.shortcut\.", ".nin_shortcut."),
    (r"\.upsample\.", ".upsample.conv1."),
    (r"^decoder\.up\.(\d+)\.adaptive\.", r"decoder.adaptive.\1."),
)


def open_magvit2_name(name: str, levels: int) -> str:
    """Return the published name of a tensor of :class:`OpenMAGVIT2`.

    Args:
        name: our name.
        levels: number of levels of a tower. The published names count the decoder's levels from full resolution down;
            we count them in the order in which they run.
    """
    name = re.sub(r"^decoder\.levels\.(\d+)", lambda found: f"decoder.up.{levels - 1 - int(found[1])}", name)
    return published_name(name, _NAMES)
