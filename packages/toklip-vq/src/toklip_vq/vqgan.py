"""VQGAN: the autoencoder and the codebook that LlamaGen, IBQ, Chameleon and our own tiny tokenizer share.

    pixels (B, 3, H, W) -> encoder -> quant_conv -> latents (B, C, h, w) -> quantizer -> ids (B, h, w, Q)
    ids -> codes (B, h, w, C) -> post_quant_conv -> decoder -> pixels (B, 3, H, W)

Shape letters: B batch, H and W picture sides, f = patch_size * 2^(resolutions - 1), h = H/f, w = W/f, C codebook dim,
K codebook size.

Architecture: Esser et al., "Taming Transformers", https://arxiv.org/abs/2012.09841; the layouts of LlamaGen
(https://arxiv.org/abs/2406.06525) and IBQ (https://arxiv.org/abs/2412.02692) differ in the sizes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from toklip_core.config import LARGEST_COUNT, LARGEST_SIDE, LARGEST_WIDTH, MOST_LAYERS, Config
from toklip_core.embeddings import BitEmbedding, ScalarEmbedding, TableEmbedding
from toklip_core.pictures import grid_by_factor
from torch import Tensor, nn

from toklip_vq.autoencoder import AutoencoderTokenizer
from toklip_vq.nearest import Metric, nearest_rows, unit_rows
from toklip_vq.quantizers import BitQuantizer, ScalarQuantizer, TableQuantizer
from toklip_vq.towers import Decoder, Encoder

QuantizerKind = Literal["vq", "ibq", "lfq", "fsq", "residual"]

#: Quantizer -> the settings that it takes, and the metric by which it finds codes unless it is told another.
_SETTINGS: dict[QuantizerKind, tuple[str, ...]] = {
    "vq": ("codebook_size", "codebook_dim"),
    "ibq": ("codebook_size", "codebook_dim"),
    "lfq": ("codebook_dim",),
    "fsq": ("values_per_channel",),
    "residual": ("codebook_size", "codebook_dim", "ids_per_position"),
}
_METRICS: dict[QuantizerKind, Metric] = {"vq": "cosine", "ibq": "dot", "residual": "euclidean"}


class VQGANConfig(Config):
    """The sizes of a VQGAN, stored as ``config.json`` in its folder and set as the table ``model`` for training."""

    quantizer: QuantizerKind = Field(
        default="vq",
        description="Quantizer: vq (nearest code), ibq (nearest code, index backpropagation), lfq (the signs of the "
        "latents), fsq (their rounded values), or residual (several ids per position, each refines those before it).",
    )
    codebook_size: int | None = Field(
        default=None, ge=2, le=LARGEST_COUNT, description="Codebook size K, of each level (vq, ibq, residual)."
    )
    codebook_dim: int | None = Field(
        default=None,
        ge=1,
        le=LARGEST_WIDTH,
        description="Codebook dimension C, the width of a code (vq, ibq, residual); the number of bits (lfq).",
    )
    metric: Metric | None = Field(
        default=None,
        description="Metric for finding the nearest code (vq): cosine (LlamaGen; unit-norm codes), dot or euclidean "
        "(Chameleon). By default cosine; ibq takes dot, residual euclidean.",
    )
    values_per_channel: tuple[Annotated[int, Field(ge=2, le=LARGEST_COUNT)], ...] | None = Field(
        default=None,
        min_length=1,
        description="Number of values of each channel of a code (fsq), such as [8, 5, 5, 5].",
    )
    ids_per_position: int | None = Field(
        default=None, ge=1, le=MOST_LAYERS, description="Number of ids per position, the levels Q (residual)."
    )
    channels: int = Field(default=128, ge=1, le=LARGEST_WIDTH, description="Channels at full resolution.")
    channel_multipliers: tuple[Annotated[int, Field(le=LARGEST_WIDTH)], ...] = Field(
        default=(1, 1, 2, 2, 4),
        min_length=1,
        description="Channels at each resolution as a multiple of `channels`; each is half of the one before.",
    )
    blocks_per_resolution: int = Field(
        default=2,
        ge=1,
        le=MOST_LAYERS,
        description="Residual blocks per resolution of the encoder; the decoder has one more.",
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
        description="Number of groups of every group norm; must divide the channels at every resolution.",
    )
    attention: bool = Field(
        default=True,
        description="Self-attention after each block at the lowest resolution; the middle block always has it.",
    )

    @property
    def code_dim(self) -> int:
        """Width C of a code."""
        return self.codebook_dim or len(self.values_per_channel or ())

    @model_validator(mode="after")
    def _settings_of_the_quantizer(self) -> Self:
        needed = _SETTINGS[self.quantizer]
        for name in ("codebook_size", "codebook_dim", "values_per_channel", "ids_per_position"):
            given = getattr(self, name) is not None
            if given != (name in needed):
                said = "has no effect with" if given else "is needed for"
                raise ValueError(f"{name} {said} the quantizer {self.quantizer!r}, which takes {' and '.join(needed)}")
        if self.metric not in (None, _METRICS.get(self.quantizer)) and self.quantizer != "vq":
            got = f"metric {self.metric!r}"
            raise ValueError(f"{got} has no effect with the quantizer {self.quantizer!r}; leave it out")
        return self

    @model_validator(mode="after")
    def _groups_divide_widths(self) -> Self:
        for multiplier in self.channel_multipliers:
            if multiplier < 1 or self.channels * multiplier % self.norm_groups:
                raise ValueError(
                    f"a width of {self.channels} x {multiplier} cannot be split into {self.norm_groups} groups; "
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
        self.config = config
        widths = tuple(config.channels * multiplier for multiplier in config.channel_multipliers)
        self.downsample_factor = config.patch_size * 2 ** (len(widths) - 1)
        sizes: dict[str, Any] = {
            "z_channels": config.z_channels,
            "groups": config.norm_groups,
            "attention": config.attention,
            "patch_size": config.patch_size,
        }
        self.encoder = Encoder(widths, config.channels, blocks=config.blocks_per_resolution, **sizes)
        self.quant_conv = nn.Conv2d(config.z_channels, config.code_dim, 1)
        self.codebook = _codebook(config)
        self.post_quant_conv = nn.Conv2d(config.code_dim, config.z_channels, 1)
        self.decoder = Decoder(widths[::-1], blocks=config.blocks_per_resolution + 1, **sizes)

    def tokenizer(self) -> AutoencoderTokenizer:
        """Return the frozen tokenizer, which takes over the towers and the codebook: the VQGAN cannot be used again.

        A second copy of 262144 x 256 codes would take 256 MiB.
        """
        quantizer = self.quantizer()
        del self.codebook
        return AutoencoderTokenizer(self, quantizer)

    def quantizer(self) -> TableQuantizer | BitQuantizer | ScalarQuantizer:
        """Return the quantizer as it is used when nothing trains; tables share the memory of the codes.

        Those of the cosine metric are written anew, with unit norm.
        """
        codebook = self.codebook
        if isinstance(codebook, BitQuantizer | ScalarQuantizer):
            return codebook
        if isinstance(codebook, ResidualCodebook):
            tables = [level.weight for level in self.codebooks()]
            return TableQuantizer(TableEmbedding(tables, combine="sum"), "euclidean")
        rows = unit_rows(codebook.weight.detach()) if codebook.metric == "cosine" else codebook.weight
        return TableQuantizer(TableEmbedding([rows]), codebook.metric)

    def codebooks(self) -> list[Codebook]:
        """Return the codebooks that train: one, one per level of a residual quantizer, or none for bits and scalars."""
        return [module for module in self.codebook.modules() if isinstance(module, Codebook)]

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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # `tokenizer.to(torch.bfloat16)` is for the towers: rounded codes would be other codes.
        kept = self.weight.data
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.weight.dtype != kept.dtype:
            self.weight.data = kept.to(self.weight.device)
        return self


class ResidualCodebook(nn.ModuleList):
    """Codebooks of several levels: each holds codes for what those before it leave of the latents.

    Source: Lee et al., https://arxiv.org/abs/2203.01941, section 3.1.
    """

    def __init__(self, levels: int, size: int, dim: int) -> None:
        super().__init__(Codebook(size, dim, "euclidean") for _ in range(levels))


def _codebook(config: VQGANConfig) -> Codebook | ResidualCodebook | BitQuantizer | ScalarQuantizer:
    if config.quantizer == "lfq":
        return BitQuantizer(BitEmbedding(config.code_dim))
    if config.quantizer == "fsq":
        return ScalarQuantizer(ScalarEmbedding(config.values_per_channel or ()))
    assert config.codebook_size is not None
    if config.quantizer == "residual":
        return ResidualCodebook(config.ids_per_position or 0, config.codebook_size, config.code_dim)
    return Codebook(config.codebook_size, config.code_dim, config.metric or _METRICS[config.quantizer])


def load_vqgan(folder: Path | str, tensors: Mapping[str, Tensor] | None = None) -> AutoencoderTokenizer:
    """Return the tokenizer in a model folder of ``toklip train vq``, in float32, also from half precision.

    Args:
        folder: model folder.
        tensors: weights to use instead of the folder's, by the same names.

    Raises:
        FileNotFoundError: the folder is not a model folder.
        ValueError: the config or the weights do not fit.
    """
    from toklip_core.config import validated
    from toklip_core.weights import CONFIG_FILE, load_strict, read_model_folder, without_values

    config, stored = read_model_folder(folder)
    sizes = validated(VQGANConfig, config, Path(folder) / CONFIG_FILE)
    with without_values():
        vqgan = VQGAN(sizes)
    load_strict(vqgan, stored if tensors is None else tensors, source=folder if tensors is None else tensors)
    return vqgan.tokenizer()
