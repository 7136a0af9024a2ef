"""VQGAN: the autoencoder and the codebook that LlamaGen, IBQ, Chameleon and our own tiny tokenizer share.

    pixels (B, 3, H, W) -> encoder -> quant_conv -> latents (B, C, h, w) -> nearest code -> ids (B, h, w)
    ids -> codes (B, h, w, C) -> post_quant_conv -> decoder -> pixels (B, 3, H, W)

Shape letters: B batch, H and W picture sides, f = patch_size * 2^(levels - 1), h = H/f, w = W/f, C codebook dim,
K codebook size.

Architecture: Esser et al., "Taming Transformers", https://arxiv.org/abs/2012.09841; the layouts of LlamaGen
(https://arxiv.org/abs/2406.06525) and IBQ (https://arxiv.org/abs/2412.02692) differ in the sizes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Protocol, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from toklip_core.config import LARGEST_COUNT, LARGEST_SIDE, LARGEST_WIDTH, MOST_LAYERS
from toklip_core.pictures import refuse_pixels
from toklip_core.weights import refuse_not_finite
from torch import Tensor, nn

from toklip_vq.nearest import Metric, nearest_rows
from toklip_vq.towers import Decoder, Encoder


class VQGANConfig(BaseModel):
    """The sizes of a VQGAN, stored as ``config.json`` in its folder and set as the table ``model`` for training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    codebook_size: int = Field(ge=2, le=LARGEST_COUNT, description="Codebook size K, the number of codes.")
    codebook_dim: int = Field(ge=1, le=LARGEST_WIDTH, description="Codebook dimension C, the width of a code.")
    metric: Metric = Field(
        default="cosine",
        description="Metric for finding the nearest code: cosine (LlamaGen; unit-norm codes), dot (IBQ) or euclidean "
        "(Chameleon).",
    )
    channels: int = Field(default=128, ge=1, le=LARGEST_WIDTH, description="Channels of the level at full resolution.")
    channel_multipliers: tuple[Annotated[int, Field(le=LARGEST_WIDTH)], ...] = Field(
        default=(1, 1, 2, 2, 4),
        min_length=1,
        description="Channels of each level as a multiple of `channels`; every level after the first halves the "
        "resolution.",
    )
    blocks_per_level: int = Field(
        default=2,
        ge=1,
        le=MOST_LAYERS,
        description="Residual blocks per level of the encoder; the decoder has one more.",
    )
    z_channels: int = Field(
        default=256,
        ge=1,
        le=LARGEST_WIDTH,
        description="Channels of the latents, between the encoder or decoder and the 1 x 1 convolution to or from "
        "codes.",
    )
    patch_size: int = Field(
        default=1,
        ge=1,
        le=LARGEST_SIDE,
        description="Side in pixels of the patches that the first convolution reads and the last one writes; 1 as "
        "published. 4 is much cheaper and trains in fewer steps, at the cost of some sharpness.",
    )
    norm_groups: int = Field(
        default=32,
        ge=1,
        le=LARGEST_WIDTH,
        description="Number of groups of every group norm; must divide the channels of every level.",
    )
    attention: bool = Field(
        default=True, description="Self-attention after each block of the lowest level; the middle block always has it."
    )

    @model_validator(mode="after")
    def _groups_divide_widths(self) -> Self:
        for multiplier in self.channel_multipliers:
            if multiplier < 1 or self.channels * multiplier % self.norm_groups:
                raise ValueError(
                    f"a level of width {self.channels} x {multiplier} cannot be split into {self.norm_groups} groups; "
                    "change channels, channel_multipliers or norm_groups"
                )
        return self


class VQGAN(nn.Module):
    """Encoder, codebook and decoder with fresh weights; trainable. :class:`VQGANTokenizer` is its frozen form.

    >>> config = VQGANConfig(codebook_size=16, codebook_dim=4, channels=8, channel_multipliers=(1, 2), norm_groups=4)
    >>> tokenizer = VQGANTokenizer(VQGAN(config))
    >>> tokenizer.encode(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 16, 16])
    """

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        widths = tuple(config.channels * multiplier for multiplier in config.channel_multipliers)
        self.downsample_factor = config.patch_size * 2 ** (len(widths) - 1)
        sizes: dict[str, Any] = {
            "z_channels": config.z_channels,
            "groups": config.norm_groups,
            "attention": config.attention,
            "patch_size": config.patch_size,
        }
        self.encoder = Encoder(widths, config.channels, blocks=config.blocks_per_level, **sizes)
        self.quant_conv = nn.Conv2d(config.z_channels, config.codebook_dim, 1)
        self.codebook = Codebook(config.codebook_size, config.codebook_dim, config.metric)
        self.post_quant_conv = nn.Conv2d(config.codebook_dim, config.z_channels, 1)
        self.decoder = Decoder(widths[::-1], blocks=config.blocks_per_level + 1, **sizes)

    def latents(self, pixels: Tensor) -> Tensor:
        """Return the latents (B, C, h, w), to compare with codes, of pixels (B, 3, H, W) in [-1, 1]."""
        latents: Tensor = self.quant_conv(self.encoder(pixels.to(self.quant_conv.weight.dtype)))
        return latents

    def reconstruct(self, codes: Tensor) -> Tensor:
        """Return pixels (B, 3, f h, f w), near [-1, 1], of codes (B, h, w, C)."""
        codes_BChw = codes.movedim(-1, 1).to(self.post_quant_conv.weight.dtype)
        pixels: Tensor = self.decoder(self.post_quant_conv(codes_BChw))
        return pixels


class Codebook(nn.Module):
    """K codes of width C, and the search for the nearest one. Keeps float32 whatever ``.to(dtype)`` says.

    Attributes:
        weight: (K, C), as it is trained and saved; not normalised.

    >>> codebook = Codebook(2, 2, "euclidean")
    >>> codebook.weight.data = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    >>> codebook.nearest(torch.tensor([[0.2, 0.1], [0.9, 0.8]]))
    tensor([0, 1])
    """

    #: Number of codes that are scored at a time, see :func:`toklip_vq.nearest.nearest_rows`.
    chunk = 4096

    def __init__(self, size: int, dim: int, metric: Metric) -> None:
        super().__init__()
        self.metric = metric
        self.weight = nn.Parameter(torch.empty(size, dim))
        if metric == "dot":  # IBQ's start; Chameleon's and LlamaGen's below
            nn.init.normal_(self.weight)
        else:
            nn.init.uniform_(self.weight, -1 / size, 1 / size)
        if metric == "cosine":  # rows of length 1 / K would get gradients K times as large from the normalisation
            self.weight.data = F.normalize(self.weight.data, dim=-1)

    def rows(self) -> Tensor:
        """Return the codes (K, C) of all ids; they have unit norm if the metric is cosine."""
        return F.normalize(self.weight, dim=-1) if self.metric == "cosine" else self.weight

    @torch.no_grad()
    def nearest(self, latents: Tensor) -> Tensor:
        """Return the ids (...), int64, of the codes nearest to latents (..., C).

        The search runs in float32, also under autocast. Of equally near codes the first wins. No gradient.
        """
        return self.search(latents)[0]

    @torch.no_grad()
    def search(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ids (...) of :meth:`nearest` and their scores (...), float32, higher for nearer codes.

        A latent or code that is not finite gives a score of NaN or infinity; the ids do not show it.
        """
        with torch.autocast(latents.device.type, enabled=False):  # of the rows, if they are normalised
            return nearest_rows(latents, self.rows(), self.metric, self.chunk)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # `tokenizer.to(torch.bfloat16)` is for the towers: rounded codes would be other codes.
        kept = self.weight.data
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.weight.dtype != kept.dtype:
            self.weight.data = kept.to(self.weight.device)
        return self


class Autoencoder(Protocol):
    """Model that :class:`VQGANTokenizer` freezes: a :class:`VQGAN`, or another ``nn.Module`` with its own towers."""

    downsample_factor: int
    codebook: Codebook

    def latents(self, pixels: Tensor) -> Tensor:
        """Return the latents (B, C, h, w), to compare with codes, of pixels (B, 3, H, W) in [-1, 1]."""

    def reconstruct(self, codes: Tensor) -> Tensor:
        """Return pixels (B, 3, f h, f w), near [-1, 1], of codes (B, h, w, C)."""

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Set ``requires_grad`` of all weights, as in ``nn.Module``."""


class VQGANTokenizer(nn.Module):
    """A VQGAN as a tokenizer plugin: frozen, always in eval mode. See :class:`toklip_core.plugins.VQTokenizer`.

    ``.to(torch.bfloat16)`` halves the precision of the towers; codes and search stay in float32. On a GPU torch lets
    convolutions round to TF32: set ``torch.backends.cudnn.allow_tf32 = False`` if ids must equal those of a CPU.
    """

    def __init__(self, vqgan: Autoencoder) -> None:
        super().__init__()
        self.vqgan = vqgan.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # an encode is 1.1 times as fast as in NCHW on Zen 4
                module.to(memory_format=torch.channels_last)
        super().train(False)

    @property
    def codebook_size(self) -> int:
        """Codebook size K."""
        return self.vqgan.codebook.weight.shape[0]

    @property
    def codebook_dim(self) -> int:
        """Codebook dimension C."""
        return self.vqgan.codebook.weight.shape[1]

    @property
    def downsample_factor(self) -> int:
        """Downsampling factor f."""
        return self.vqgan.downsample_factor

    def train(self, mode: bool = True) -> Self:
        """Return the tokenizer unchanged: it always stays in evaluation mode."""
        return self

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Return the ids (B, h, w), int64, of pixels (B, 3, H, W) in [-1, 1].

        Raises:
            ValueError: H or W is not a multiple of f, ``pixels`` has another shape or an integer dtype, or a pixel or a
                latent is NaN or infinite.
        """
        factor = self.downsample_factor
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(f"got pixels of shape {tuple(pixels.shape)}; wanted (B, 3, H, W)")
        if pixels.shape[2] % factor or pixels.shape[3] % factor or not pixels.shape[2] * pixels.shape[3]:
            raise ValueError(
                f"got a picture of {pixels.shape[2]} x {pixels.shape[3]}; its sides must be multiples of {factor}: "
                "crop or resize it"
            )
        refuse_pixels(pixels)
        height, width = pixels.shape[2] // factor, pixels.shape[3] // factor
        ids = torch.empty(len(pixels), height, width, dtype=torch.int64, device=pixels.device)
        nearness = torch.empty_like(ids, dtype=torch.float32)
        with torch.autocast(pixels.device.type, enabled=False):
            # One by one: ids do not depend on the rest of the batch, and activations stay in the processor's cache.
            for i in range(len(pixels)):
                latents = self.vqgan.latents(pixels[i : i + 1]).movedim(1, -1)
                ids[i : i + 1], nearness[i : i + 1] = self.vqgan.codebook.search(latents)
        refuse_not_finite(nearness, "a latent")
        return ids

    def embed(self, ids: Tensor) -> Tensor:
        """Return the codes (..., C) of ids (...), which are bit-exact rows of the codebook."""
        return F.embedding(ids, self.vqgan.codebook.rows())

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """Return float32 pixels (B, 3, f h, f w), near [-1, 1], of ids (B, h, w).

        Raises:
            ValueError: ``ids`` has another shape, an id is not in [0, K), or a decoded pixel is NaN or infinite.
        """
        if ids.ndim != 3:
            raise ValueError(f"got ids of shape {tuple(ids.shape)}; wanted (B, h, w)")
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.codebook_size:
            raise ValueError(
                f"got ids from {int(ids.min())} to {int(ids.max())}, but the codebook has {self.codebook_size}; "
                "take the tokenizer that made them"
            )
        with torch.autocast(ids.device.type, enabled=False):
            pictures = [self.vqgan.reconstruct(self.embed(grid[None])).float() for grid in ids]
        factor = self.downsample_factor
        empty = torch.empty(0, 3, ids.shape[1] * factor, ids.shape[2] * factor, device=ids.device)
        pixels = torch.cat([empty, *pictures])
        refuse_not_finite(pixels, "a decoded pixel")
        return pixels


def load_vqgan(folder: Path | str, tensors: Mapping[str, Tensor] | None = None) -> VQGANTokenizer:
    """Return the tokenizer in a model folder of ``toklip train vq``, in float32, also from half precision.

    Args:
        folder: model folder.
        tensors: weights to use instead of the folder's, by the same names.

    Raises:
        FileNotFoundError: the folder is no model folder.
        ValueError: the config or the weights do not fit.
    """
    from toklip_core.config import validated
    from toklip_core.weights import CONFIG_FILE, load_strict, read_model_folder

    config, stored = read_model_folder(folder)
    sizes = validated(VQGANConfig, config, Path(folder) / CONFIG_FILE)
    with torch.device("meta"):
        vqgan = VQGAN(sizes)
    load_strict(vqgan, stored if tensors is None else tensors, source=folder if tensors is None else tensors)
    return VQGANTokenizer(vqgan)
