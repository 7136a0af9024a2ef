"""VQGAN: the autoencoder and the codebook that LlamaGen, IBQ, Chameleon and our own tiny tokenizer share.

    pixels (B, 3, H, W) -> encoder -> quant_conv -> latents (B, C, h, w) -> nearest code -> ids (B, h, w, 1)
    ids -> codes (B, h, w, C) -> post_quant_conv -> decoder -> pixels (B, 3, H, W)

Shape letters: B batch, H and W picture sides, f = patch_size * 2^(levels - 1), h = H/f, w = W/f, C codebook dim,
K codebook size.

Architecture: Esser et al., "Taming Transformers", https://arxiv.org/abs/2012.09841; the layouts of LlamaGen
(https://arxiv.org/abs/2406.06525) and IBQ (https://arxiv.org/abs/2412.02692) differ in the sizes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from toklip_core.config import LARGEST_COUNT, LARGEST_SIDE, LARGEST_WIDTH, MOST_LAYERS
from toklip_core.embeddings import TableEmbedding
from toklip_core.pictures import grid_by_factor
from torch import Tensor, nn

from toklip_vq.autoencoder import AutoencoderTokenizer
from toklip_vq.nearest import Metric, nearest_rows, unit_rows
from toklip_vq.quantizers import TableQuantizer
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
    """Encoder, codebook and decoder with fresh weights; trainable. :meth:`tokenizer` gives its frozen form.

    >>> config = VQGANConfig(codebook_size=16, codebook_dim=4, channels=8, channel_multipliers=(1, 2), norm_groups=4)
    >>> tokenizer = VQGAN(config).tokenizer()
    >>> tokenizer.encode(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 16, 16, 1])
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

    def tokenizer(self) -> AutoencoderTokenizer:
        """Return the frozen tokenizer, which takes over the towers and the codebook: the VQGAN cannot be used again.

        A second copy of 262144 x 256 codes would take 256 MiB.
        """
        quantizer = self.codebook.quantizer()
        del self.codebook
        return AutoencoderTokenizer(self, quantizer)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the grid (h, w) of a picture; ValueError unless its sides are multiples of f."""
        return grid_by_factor(height, width, self.downsample_factor)

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

    def nearest(self, latents: Tensor) -> Tensor:
        """Return the ids (...), int64, of the codes nearest to latents (..., C); see :func:`nearest_rows`."""
        return nearest_rows(latents, self.rows(), self.metric)[0]

    def quantizer(self) -> TableQuantizer:
        """Return the frozen form, whose table shares the memory of the codes unless the metric is cosine."""
        rows = unit_rows(self.weight.detach()) if self.metric == "cosine" else self.weight
        return TableQuantizer(TableEmbedding([rows]), self.metric)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # `tokenizer.to(torch.bfloat16)` is for the towers: rounded codes would be other codes.
        kept = self.weight.data
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.weight.dtype != kept.dtype:
            self.weight.data = kept.to(self.weight.device)
        return self


def load_vqgan(folder: Path | str, tensors: Mapping[str, Tensor] | None = None) -> AutoencoderTokenizer:
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
    return vqgan.tokenizer()
