"""The convolutional towers of a VQGAN. Trainable; without gradients they work in place and in stripes.

A tower spends most of its time in the two or four residual blocks at full resolution, where a tensor takes 32 MiB for
a picture of 256 x 256, and 128 MiB for 512 x 512. Allocating such tensors costs more than filling them (the system
clears every page). So where no gradient needs them, the steps between two convolutions run in place, and large tensors
are processed in stripes of rows that stay in the processor's cache: two large tensors at a time instead of five.

Shape letters: B batch, C channels, G norm groups, H and W the sides at some resolution.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Bytes from which a tensor is processed in stripes: glibc asks the system for 32 MiB and more each time.
_LARGE = 1 << 25
#: Elements of a stripe, 2 MiB in float32. Twice as many are 2 % faster and need 15 MiB more; half as many, 1 % slower.
_STRIPE = 1 << 19


class Encoder(nn.Module):
    """Tower from pixels (B, 3, H, W) to z (B, z_channels, H/f, W/f).

    Args:
        widths: width at each resolution, from the full one down; each halves the sides, but not the last.
        channels: channels of the first convolution.
        blocks: number of residual blocks per resolution.
        z_channels: channels of the result.
        groups: groups of every norm.
        attention: whether attention follows each block at the lowest resolution.
        patch_size: p; the first convolution reads p x p pixels as one with 3 p^2 channels.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        channels: int,
        *,
        blocks: int,
        z_channels: int,
        groups: int,
        attention: bool,
        patch_size: int,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.conv_in = nn.Conv2d(3 * patch_size**2, channels, 3, padding=1)
        self.levels = nn.ModuleList()
        for i, width in enumerate(widths):
            lowest = i == len(widths) - 1
            before = widths[i - 1] if i else channels
            level = Level(before, width, blocks=blocks, groups=groups, attention=attention and lowest)
            if not lowest:
                level.downsample = nn.Conv2d(width, width, 3, stride=2)
            self.levels.append(level)
        self.middle = middle(widths[-1], groups)
        self.norm_out = group_norm(groups, widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], z_channels, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return z (B, z_channels, H/f, W/f) of pixels (B, 3, H, W)."""
        x = self.conv_in(F.pixel_unshuffle(pixels, self.patch_size))
        for level in self.levels:
            x = level(x)
        return convolve(self.middle(x), self.norm_out, self.conv_out)


class Decoder(nn.Module):
    """Tower from z (B, z_channels, h, w) to pixels (B, 3, f h, f w).

    Args: those of :class:`Encoder`, with widths from the lowest resolution up, in the order in which they run.
    """

    def __init__(
        self, widths: tuple[int, ...], *, blocks: int, z_channels: int, groups: int, attention: bool, patch_size: int
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.conv_in = nn.Conv2d(z_channels, widths[0], 3, padding=1)
        self.middle = middle(widths[0], groups)
        self.levels = nn.ModuleList()
        for i, width in enumerate(widths):
            level = Level(widths[max(i - 1, 0)], width, blocks=blocks, groups=groups, attention=attention and i == 0)
            if i < len(widths) - 1:
                level.upsample = nn.Conv2d(width, width, 3, padding=1)
            self.levels.append(level)
        self.norm_out = group_norm(groups, widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 3 * patch_size**2, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """Return pixels (B, 3, f h, f w) of z (B, z_channels, h, w)."""
        x = self.middle(self.conv_in(z))
        for level in self.levels:
            x = level(x)
        return F.pixel_shuffle(convolve(x, self.norm_out, self.conv_out), self.patch_size)


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention if asked for, then one change of resolution."""

    def __init__(self, width_in: int, width: int, *, blocks: int, groups: int, attention: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(width_in if i == 0 else width, width, groups) for i in range(blocks))
        self.attentions = nn.ModuleList(Attention(width, groups) for _ in range(blocks if attention else 0))
        self.downsample: nn.Conv2d | None = None
        self.upsample: nn.Conv2d | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return the result of the level for x (B, C, H, W). Without gradients x may be overwritten."""
        for i, block in enumerate(self.blocks):
            x = block(x)
            if self.attentions:
                x = self.attentions[i](x)
        if self.downsample is not None:
            x = downsample(x, self.downsample)
        if self.upsample is not None:
            x = self.upsample(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return x


class ResidualBlock(nn.Module):
    """x + conv(swish(norm(conv(swish(norm(x)))))); a 1 x 1 convolution on x where the width changes."""

    def __init__(self, width_in: int, width: int, groups: int, *, bias: bool = True) -> None:
        super().__init__()
        self.norm1 = group_norm(groups, width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1, bias=bias)
        self.norm2 = group_norm(groups, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=bias)
        self.shortcut = nn.Conv2d(width_in, width, 1, bias=bias) if width_in != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the result of the block for x (B, C, H, W). Without gradients x may be overwritten."""
        h = convolve(x, self.norm1, self.conv1)
        return convolve(h, self.norm2, self.conv2, onto=self.shortcut(x))


class Attention(nn.Module):
    """x + attention(norm(x)) over all positions, with one head."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = group_norm(groups, width)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the result of the block for x (B, C, H, W)."""
        # Matrix products, because oneDNN does not take 1 x 1 convolutions at small sizes.
        x_BNC = normalize(x, self.norm).flatten(2).mT
        q, k, v = (F.linear(x_BNC, conv.weight.flatten(1), conv.bias) for conv in (self.q, self.k, self.v))
        x_BNC = F.scaled_dot_product_attention(q, k, v)
        return x + F.linear(x_BNC, self.out.weight.flatten(1), self.out.bias).mT.reshape(x.shape)


def middle(width: int, groups: int) -> nn.Sequential:
    """Return the block, attention and block that both towers have at the lowest resolution."""
    return nn.Sequential(
        ResidualBlock(width, width, groups), Attention(width, groups), ResidualBlock(width, width, groups)
    )


def group_norm(groups: int, width: int) -> nn.GroupNorm:
    """Return the group norm that all layers use; its eps is that of taming-transformers."""
    return nn.GroupNorm(groups, width, eps=1e-6)


def normalize(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Return norm(x) of x (B, C, H, W), as a new tensor.

    torch's own norm of a channels-last tensor on a CPU takes the variance as a difference of squares: where the mean is
    300 times the deviation, results of order 1 are off by 4. So without gradients the moments are taken in another way.
    """
    if torch.is_grad_enabled() or x.device.type != "cpu" or not x.numel():
        return norm(x)  # type: ignore[no-any-return]
    scale, shift = affine(x, norm)
    return torch.addcmul(shift, x, scale)


def convolve(x: Tensor, norm: nn.GroupNorm, conv: nn.Conv2d, onto: Tensor | None = None) -> Tensor:
    """Return conv(swish(norm(x))) of x (B, C, H, W), plus ``onto`` if given.

    Without gradients the result overwrites ``onto``, and a large x is not copied.

    Args:
        x: (B, C, H, W).
        norm: group norm over C channels.
        conv: 3 x 3 convolution, padded by 1.
        onto: tensor of the result's shape that is added; None: nothing.
    """
    h: Tensor
    if torch.is_grad_enabled():
        h = conv(F.silu(norm(x)))
        return h if onto is None else onto + h
    if not _is_large(x):
        h = conv(F.silu(normalize(x, norm), inplace=True))
        return h if onto is None else onto.add_(h)
    batch, channels, height, width = x.shape
    out = _empty(x, (batch, conv.out_channels, height, width)) if onto is None else onto
    scale, shift = affine(x, norm)
    for top, bottom in _stripes(x):
        # A stripe and the rows next to it; zeros beyond the picture.
        above, below = max(top - 1, 0), min(bottom + 1, height)
        h = _empty(x, (batch, channels, bottom - top + 2, width)).zero_()
        torch.addcmul(shift, x[:, :, above:below], scale, out=h[:, :, above - top + 1 : below - top + 1])
        h = F.conv2d(F.silu(h, inplace=True), conv.weight, conv.bias, padding=(0, 1))
        rows = out[:, :, top:bottom]
        rows.copy_(h) if onto is None else rows.add_(h)
    return out


def downsample(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Return the convolution (3 x 3, stride 2) of x padded by a row below and a column to the right."""
    if torch.is_grad_enabled() or not _is_large(x):
        return conv(F.pad(x, (0, 1, 0, 1)))  # type: ignore[no-any-return]
    batch, _, height, width = x.shape
    out = _empty(x, (batch, conv.out_channels, height // 2, width // 2))
    for top, bottom in _stripes(x):
        stripe = F.pad(x[:, :, top : bottom + 1], (0, 1, 0, int(bottom == height)))
        out[:, :, top // 2 : bottom // 2] = conv(stripe)
    return out


def _empty(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, memory_format=torch.channels_last)


def _is_large(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.nbytes >= _LARGE


def _stripes(x: Tensor) -> Iterator[tuple[int, int]]:
    """Yield (top, bottom) of stripes of an even number of rows."""
    height = x.shape[2]
    rows = max(_STRIPE * height // max(x.numel(), 1) // 2 * 2, 2)
    for top in range(0, height, rows):
        yield top, min(top + rows, height)


def affine(x: Tensor, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
    """Return scale and shift (B, C, 1, 1) with which x * scale + shift is norm(x). Moments are taken in float32."""
    batch, channels, height, _ = x.shape
    stripes = list(_stripes(x))
    # One tensor for the moments of all stripes: small ones between the large ones would keep the heap from shrinking.
    means_SBC, variances_SBC = torch.empty(2, len(stripes), batch, channels)
    for i, (top, bottom) in enumerate(stripes):
        rows = x[:, :, top:bottom].float()
        if batch == 1:  # a tenth of the time
            means_SBC[i], variances_SBC[i] = torch.batch_norm_update_stats(rows, None, None, 0.0)
        else:
            variances_SBC[i], means_SBC[i] = torch.var_mean(rows, dim=(2, 3), correction=0)
    # The variance of the whole is the mean of the parts' variances plus the variance of their means.
    share_S11 = torch.tensor([(bottom - top) / height for top, bottom in stripes]).view(-1, 1, 1)
    grouped = (len(stripes), batch, norm.num_groups, -1)
    mean_BG1 = (share_S11 * means_SBC).sum(0).view(grouped[1:]).mean(-1, keepdim=True)
    distances_SBC = (means_SBC.view(grouped) - mean_BG1).view_as(means_SBC)
    variances_BC = (share_S11 * (variances_SBC + distances_SBC.square())).sum(0)
    rstd_BG1 = (variances_BC.view(grouped[1:]).mean(-1, keepdim=True) + norm.eps).rsqrt()
    scale_BC, mean_BC = (y.expand(-1, -1, channels // norm.num_groups).flatten(1) for y in (rstd_BG1, mean_BG1))
    if norm.affine:
        scale_BC = scale_BC * norm.weight.float()
    shift_BC = -mean_BC * scale_BC
    if norm.affine:
        shift_BC = shift_BC + norm.bias.float()
    return scale_BC[:, :, None, None].to(x.dtype), shift_BC[:, :, None, None].to(x.dtype)
