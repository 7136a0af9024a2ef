"""TokenFlow: one id for meaning and look together, on a pyramid of maps of growing size.

    pixels (B, 3, S, S) -> CLIP or SigLIP -> encode_task_layer -> semantic channels ┐
    pixels (B, 3, S, S) -> encoder of a VQGAN -> quant_conv -> pixel channels       ┴ latents (B, C, g, g)
    latents -> average to n x n -> nearest row -> ids of scale n -> resize to g x g -> subtract, next scale
    sum of the resized maps (B, g, g, C) -> its pixel channels -> post_quant_conv -> decoder -> pixels (B, 3, S, S)
                                         -> its semantic channels -> a small transformer -> features (B, N, E)

Both kinds of channels have a table of unit rows; a row of the codebook is a row of each, side by side, so the nearest
one is the one with the largest inner product.

Shape letters: B batch, S picture side, g last scale, N = g^2, C codebook dim, the semantic channels first, D width of
CLIP, SigLIP or the small transformer, E width of the features that they were trained to have.

Source: Qu et al., TokenFlow, https://arxiv.org/abs/2412.03069; names of ByteFlow-AI/TokenFlow, tokenflow/tokenizer.
The pyramid is VAR's (https://arxiv.org/abs/2404.02905); the small transformer is timm's BEiT.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from toklip_core.embeddings import PyramidEmbedding
from toklip_core.pictures import grid_of_size
from toklip_core.plugins import Weights
from toklip_core.weights import load_strict, read_weights, without_values
from torch import Tensor, nn

from toklip_vq.autoencoder import AutoencoderTokenizer
from toklip_vq.nearest import nearest_rows, unit_rows
from toklip_vq.onednn import OneDNNLinear, replace_modules
from toklip_vq.published.llamagen import llamagen_name
from toklip_vq.published.siglip import SO400M_384, SiglipSizes, SiglipStates, siglip_name, unused_names
from toklip_vq.towers import Decoder, Encoder


@dataclass(frozen=True, kw_only=True)
class ClipSizes:
    """The sizes of a vision tower of CLIP."""

    width: int
    layers: int
    heads: int
    patch_size: int
    #: Number of positions along a side in the table of positions, which is resized to the grid.
    positions: int


@dataclass(frozen=True, kw_only=True)
class TokenFlowConfig:
    """The sizes of a TokenFlow."""

    image_size: int
    #: Sides of the maps; the last one is g.
    scales: tuple[int, ...]
    tower: ClipSizes | SiglipSizes
    #: Channels of the encoder and of the decoder at full resolution, and blocks per level of each.
    encoder_channels: int = 128
    encoder_blocks: int = 2
    decoder_channels: int = 128
    decoder_blocks: int = 3
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    z_channels: int = 256
    codebook_size: int = 32768
    semantic_dim: int = 32
    pixel_dim: int = 8
    #: Small transformer: its layers, heads and positions along a side, and the width E of its features.
    semantic_layers: int = 3
    semantic_heads: int = 12
    semantic_positions: int
    feature_dim: int


TOKENFLOW_CONFIGS = {
    "clipb": TokenFlowConfig(
        image_size=256,
        scales=(1, 2, 4, 6, 8, 10, 12, 14, 16),
        tower=ClipSizes(width=768, layers=12, heads=12, patch_size=16, positions=14),
        decoder_channels=256,
        decoder_blocks=5,
        semantic_positions=14,
        feature_dim=512,
    ),
    "siglip": TokenFlowConfig(
        image_size=384,
        scales=(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 17, 22, 27),
        tower=SO400M_384,
        semantic_positions=27,
        feature_dim=1152,
    ),
}


#: Keys below which a file may keep its weights, the preferred first.
_LAYOUTS = ("ema", "model", "state_dict")

_IGNORED = {r"quantize\.codebook_used": "the ids of the last training steps, kept to report the use of the codebook"}

_VISION = "encoder_vqkd.vision_model."


class TokenFlow(nn.Module):
    """The towers on both sides of the codebook."""

    def __init__(self, config: TokenFlowConfig) -> None:
        super().__init__()
        self.image_size, self.side = config.image_size, config.scales[-1]
        self._grid = (1, sum(scale**2 for scale in config.scales))
        self.semantic_dim = config.semantic_dim
        multipliers = config.channel_multipliers
        towers: dict[str, Any] = {"z_channels": config.z_channels, "groups": 32, "attention": True, "patch_size": 1}
        self.downsample_factor = 2 ** (len(multipliers) - 1)
        self.encoder = Encoder(
            tuple(config.encoder_channels * multiplier for multiplier in multipliers),
            config.encoder_channels,
            blocks=config.encoder_blocks,
            **towers,
        )
        self.quant_conv = nn.Conv2d(config.z_channels, config.pixel_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.pixel_dim, config.z_channels, 1)
        self.decoder = Decoder(
            tuple(config.decoder_channels * multiplier for multiplier in multipliers[::-1]),
            blocks=config.decoder_blocks,
            **towers,
        )
        width = config.tower.width
        if isinstance(config.tower, SiglipSizes):
            self.scaling_layer: Scaling | None = Scaling()
            self.encoder_vqkd: SiglipStates | ClipStates = SiglipStates(config.tower)
        else:
            self.scaling_layer = None
            self.encoder_vqkd = ClipStates(config.tower, self.side)
        self.encode_task_layer = _task_layer(width, config.semantic_dim)
        self.decoder_vqkd = SemanticDecoder(config, self.side)
        self.decode_task_layer = _task_layer(width, config.feature_dim)
        replace_modules(self, nn.Linear, OneDNNLinear.of)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the grid (1, sum of squares of the scales) of a picture; ValueError unless it is of the one size."""
        return grid_of_size(height, width, size=(self.image_size, self.image_size), grid=self._grid)

    def latents(self, pixels: Tensor) -> Tensor:
        """Return the latents (B, C, g, g), semantic channels first, of pixels (B, 3, S, S) in [-1, 1]."""
        pixels = pixels.to(self.quant_conv.weight.dtype)
        scaled = pixels if self.scaling_layer is None else self.scaling_layer(pixels)
        semantic_BNC: Tensor = self.encode_task_layer(self.encoder_vqkd(scaled))
        semantic_BChw = semantic_BNC.mT.reshape(len(pixels), -1, self.side, self.side)
        look_BChw = self.quant_conv(self.encoder(_resized(pixels, self.side * self.downsample_factor)))
        return torch.cat([semantic_BChw, look_BChw], dim=1)

    def reconstruct(self, codes: Tensor) -> Tensor:
        """Return pixels (B, 3, S, S), near [-1, 1], of a code map (B, g, g, C)."""
        look_BChw = codes.movedim(-1, 1)[:, self.semantic_dim :].to(self.post_quant_conv.weight.dtype)
        return _resized(self.decoder(self.post_quant_conv(look_BChw)), self.image_size)

    def features(self, codes: Tensor) -> Tensor:
        """Return features (B, N, E), which CLIP's or SigLIP's were the target of, of a code map (B, g, g, C)."""
        semantic_BChw = codes.movedim(-1, 1)[:, : self.semantic_dim].to(self.post_quant_conv.weight.dtype)
        features: Tensor = self.decode_task_layer(self.decoder_vqkd(semantic_BChw))
        return features


class PyramidQuantizer(nn.Module):
    """The nearest rows for maps of growing size, each of what those before it have left over.

    Args:
        embedding: rows of two parts, each of unit norm.
        semantic_dim: width of the first part.
    """

    def __init__(self, embedding: PyramidEmbedding, semantic_dim: int) -> None:
        super().__init__()
        self.embedding, self.semantic_dim = embedding, semantic_dim

    @torch.no_grad()
    def search(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ids (B, 1, L, 1) of latents (B, g, g, C), L ids of all scales, and scores (B, 1, L)."""
        left_BCgg, ids, scores = latents.movedim(-1, 1).float(), [], []
        parts = [self.semantic_dim, self.embedding.codebook_dim - self.semantic_dim]
        for scale in self.embedding.scales:
            means_BnnC = F.interpolate(left_BCgg, size=(scale, scale), mode="area").movedim(1, -1)
            units_BnnC = torch.cat(
                [F.normalize(part, dim=-1) for part in torch.split(means_BnnC, parts, dim=-1)], dim=-1
            )
            ids_Bnn, scores_Bnn = nearest_rows(units_BnnC, self.embedding.rows(), "dot")
            codes_BCnn = F.embedding(ids_Bnn, self.embedding.rows()).movedim(-1, 1)
            left_BCgg = left_BCgg - _resized(codes_BCnn, left_BCgg.shape[-1])
            ids.append(ids_Bnn.flatten(1))
            scores.append(scores_Bnn.flatten(1))
        return torch.cat(ids, dim=1)[:, None, :, None], torch.cat(scores, dim=1)[:, None]


class Scaling(nn.Module):
    """What is done to pixels before SigLIP: to [0, 1], clamped, then normalised."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.empty(1, 3, 1, 1))
        self.register_buffer("scale", torch.empty(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return normalised pixels of pixels (B, 3, S, S) in [-1, 1]."""
        scaled: Tensor = (((pixels + 1) / 2).clamp(0, 1) - self.shift) / self.scale
        return scaled


class ClipStates(nn.Module):
    """OpenAI's CLIP, by open_clip: its patch tokens after the last layer, without the last norm."""

    def __init__(self, sizes: ClipSizes, side: int) -> None:
        from open_clip.transformer import QuickGELU, VisionTransformer

        super().__init__()
        self.side = side
        tower = VisionTransformer(
            sizes.positions * sizes.patch_size,
            sizes.patch_size,
            sizes.width,
            sizes.layers,
            sizes.heads,
            mlp_ratio=4,
            act_layer=QuickGELU,
        )
        self.class_embedding, self.positional_embedding = tower.class_embedding, tower.positional_embedding
        self.conv1, self.ln_pre, self.transformer, self.ln_post = (
            tower.conv1,
            tower.ln_pre,
            tower.transformer,
            tower.ln_post,
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the tokens (B, N, D) of pixels (B, 3, S, S)."""
        x_BND = self.conv1(pixels).flatten(2).mT
        x_BND = torch.cat([self.class_embedding.expand(len(x_BND), 1, -1), x_BND], dim=1)
        x_BND = x_BND + positions_for(self.positional_embedding, self.side)
        tokens: Tensor = self.ln_post(self.transformer(self.ln_pre(x_BND)))
        return tokens[:, 1:]


class SemanticDecoder(nn.Module):
    """timm's BEiT on a map of codes: its patch tokens after the last norm."""

    def __init__(self, config: TokenFlowConfig, side: int) -> None:
        from timm.models.beit import Beit

        super().__init__()
        self.side = side
        beit = Beit(
            config.semantic_positions,
            1,
            config.semantic_dim,
            num_classes=0,
            embed_dim=config.tower.width,
            depth=config.semantic_layers,
            num_heads=config.semantic_heads,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
        )
        self.cls_token, self.pos_embed, self.patch_embed = beit.cls_token, beit.pos_embed, beit.patch_embed
        self.blocks, self.fc_norm = beit.blocks, beit.fc_norm
        for block in self.blocks:  # keys have no bias; timm adds zeros, which no file has and the meta device loses
            block.attn.k_bias = torch.zeros(config.tower.width, device="cpu")

    def forward(self, codes: Tensor) -> Tensor:
        """Return the tokens (B, N, D) of codes (B, C, g, g)."""
        x_BND = self.patch_embed.proj(codes).flatten(2).mT
        x_BND = torch.cat([self.cls_token.expand(len(x_BND), -1, -1), x_BND], dim=1)
        x_BND = x_BND + positions_for(self.pos_embed[0], self.side)
        for block in self.blocks:
            x_BND = block(x_BND)
        tokens: Tensor = self.fc_norm(x_BND[:, 1:])
        return tokens


def positions_for(table: Tensor, side: int) -> Tensor:
    """Return a table of positions (1 + M^2, D), a class token's first, for a grid of side x side: (1 + side^2, D).

    It is resized bicubically, in float32, by DINO's factor (side + 0.1) / M, and not at all if M is side: with that
    factor a resize to the same size would not be the identity.
    """
    own = round((len(table) - 1) ** 0.5)
    if own == side:
        return table
    map_1DMM = table[1:].float().T.reshape(1, -1, own, own)
    resized = F.interpolate(map_1DMM, scale_factor=(side + 0.1) / own, mode="bicubic")
    return torch.cat([table[:1], resized[0].flatten(1).T.to(table.dtype)])


def _task_layer(width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, outputs))


def _resized(maps: Tensor, side: int) -> Tensor:
    """Return maps (B, C, S, S) of another side, bicubically, if it is another one."""
    if maps.shape[-1] == side:
        return maps
    return F.interpolate(maps, size=(side, side), mode="bicubic")


def load_tokenflow(
    weights: Weights | str, config: TokenFlowConfig = TOKENFLOW_CONFIGS["clipb"]
) -> AutoencoderTokenizer:
    """Return a TokenFlow.

    Args:
        weights: file as published (.pt), or tensors by its names; the first of the layouts ``ema``, ``model``,
            ``state_dict`` and flat that a file has is used.
        config: sizes.

    Raises:
        FileNotFoundError: there is no such file.
        LookupError: transformers is not installed, for the variant with SigLIP.
        ValueError: the file is damaged or does not fit.
    """
    tensors = read_weights(weights, _LAYOUTS)
    with without_values():
        network = TokenFlow(config)
        semantic, look = (nn.Embedding(config.codebook_size, dim) for dim in (config.semantic_dim, config.pixel_dim))
    siglip = isinstance(config.tower, SiglipSizes)
    load_strict(
        nn.ModuleDict({"network": network, "embedding_vqkd": semantic, "embedding_vqgan": look}),
        tensors,
        source=weights,
        name_in_file=lambda name: tokenflow_name(name, siglip=siglip),
        ignored=_IGNORED | (unused_names(_VISION, config.tower) if isinstance(config.tower, SiglipSizes) else {}),
    )
    rows = torch.cat([unit_rows(table.weight.detach()) for table in (semantic, look)], dim=1)
    return AutoencoderTokenizer(network, PyramidQuantizer(PyramidEmbedding(rows, config.scales), config.semantic_dim))


def tokenflow_name(name: str, *, siglip: bool) -> str:
    """Return the published name of a tensor of the network (``network.``) or of the tables.

    Args:
        name: our name.
        siglip: whether the tower is SigLIP's.
    """
    if name.startswith("embedding_"):
        return f"quantize.{name}"
    name = name.removeprefix("network.")
    if siglip and name.startswith("encoder_vqkd."):
        return _VISION + siglip_name(name.removeprefix("encoder_vqkd."))
    return llamagen_name(name) if name.startswith(("encoder.", "decoder.")) else name
