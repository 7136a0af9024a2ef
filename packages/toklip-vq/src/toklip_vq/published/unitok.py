"""UniTok: eight ids per position, which hold a picture's meaning as well as its look.

    pixels (B, 3, H, W) -> ViTamin encoder -> projection -> latents (B, C, h, w) -> nearest row per level -> ids
    ids (B, h, w, Q) -> codes (B, h, w, C) -> projection -> tokens (B, D, h, w) -> ViTamin decoder -> pixels

There is no position embedding, so pictures may have any sides that are multiples of 16. The weights are those that
attend to all positions; the first release, of February 2025, was causal and has the same names.

Shape letters: B batch, H and W picture sides, h = H/16, w = W/16, N = h w, Q levels, C codebook dim, D width, M width
inside a convolutional block, T heads, d head width.

Source: Ma et al., UniTok, https://arxiv.org/abs/2502.20321; sizes and names of FoundationVision/UniTok,
models/unitok.py. The trunk is ViTamin-L (https://arxiv.org/abs/2404.02132), of which timm has the convolutions and the
blocks. It has neither the decoder nor an attention that changes the width: these are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from toklip_core.embeddings import TableEmbedding
from toklip_core.pictures import grid_by_factor
from toklip_core.plugins import Weights
from toklip_core.weights import load_strict, read_tensors, state_dict_in, without_values
from torch import Tensor, nn

from toklip_vq.autoencoder import AutoencoderTokenizer
from toklip_vq.nearest import unit_rows
from toklip_vq.onednn import OneDNNLinear, replace_modules
from toklip_vq.published.names import published_name
from toklip_vq.quantizers import TableQuantizer

#: Names in a file that the tokenizer does not take -> reason.
_IGNORED = {
    r"(text_encoder|fc_norm|projection)\..+|logit_scale": "the side of texts, which ids and pictures do not need",
    r"quantizer\.codebooks\.\d+\.vocab_usage": "how often training used each id",
    r"(post_)?quant_proj\.attn\.zero_k_bias": "zeros; a bias of keys would add one number to all scores of a query",
}

#: Our names -> those of a file.
_NAMES = (
    (r"^embedding\.table_(\d+)$", r"quantizer.codebooks.\1.codebook.weight"),
    (r"^encoder\.convolutions\.", "encoder.patch_embed.backbone."),
    (r"^decoder\.up_conv4\.0\.", "decoder.up_conv4.conv1."),
    (r"^decoder\.up_conv4\.1\.", "decoder.up_conv4.norm1."),
    (r"^decoder\.up_conv4\.2\.", "decoder.up_conv4.conv2."),
)


@dataclass(frozen=True, kw_only=True)
class UniTokConfig:
    """The sizes of a UniTok; the defaults are the published ones."""

    #: Channels of the stem and of the two convolutional stages, and number of blocks of each stage.
    stem: int = 160
    stages: tuple[int, int] = (160, 320)
    stage_depths: tuple[int, int] = (2, 4)
    #: Width D, number and heads of the transformer blocks, in the encoder and again in the decoder.
    width: int = 1024
    depth: int = 31
    heads: int = 16
    #: Number of blocks of the decoder's two convolutional stages.
    up_depths: tuple[int, int] = (4, 2)
    #: Codebook size of each level, and width of the rows of a level.
    codebook_sizes: tuple[int, ...] = (4096,) * 8
    row_width: int = 8


class UniTok(nn.Module):
    """The towers and the tables, as they are in a file.

    Levels are independent: a level has the channels of its own, and a code is the concatenation of one row of each.
    """

    def __init__(self, config: UniTokConfig) -> None:
        super().__init__()
        self.embedding = TableEmbedding([torch.empty(size, config.row_width) for size in config.codebook_sizes])
        width, codebook_dim = config.width, self.embedding.codebook_dim
        self.encoder = Encoder(config)
        self.quant_proj = Projection(width, codebook_dim)
        self.post_quant_proj = Projection(codebook_dim, width)
        self.decoder = Decoder(config)

    def tokenizer(self) -> AutoencoderTokenizer:
        """Return the frozen tokenizer, which takes over the towers: the UniTok cannot be used again."""
        tables = [unit_rows(self.embedding.rows(level)) for level in range(len(self.embedding.codebook_sizes))]
        del self.embedding
        replace_modules(self, Upsample, Upsample.folded)
        replace_modules(self, nn.Linear, partial(OneDNNLinear.of, packs=False))  # weights are mapped from the file
        return AutoencoderTokenizer(self, TableQuantizer(TableEmbedding(tables), "cosine"))

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the grid (h, w) of a picture; ValueError unless its sides are multiples of 16."""
        return grid_by_factor(height, width, 16)

    def latents(self, pixels: Tensor) -> Tensor:
        """Return the latents (B, C, h, w), not normalised, of pixels (B, 3, H, W) in [-1, 1]."""
        features = self.encoder(pixels.to(self.quant_proj.proj.weight.dtype))
        return _as_map(self.quant_proj(_as_row(features)), features)

    def tokens(self, codes: Tensor) -> Tensor:
        """Return the tokens (B, D, h, w), which stand for the meaning and are decoded, of codes (B, h, w, C)."""
        codes_BChw = codes.movedim(-1, 1).to(self.quant_proj.proj.weight.dtype)
        return _as_map(self.post_quant_proj(_as_row(codes_BChw)), codes_BChw)

    def reconstruct(self, codes: Tensor) -> Tensor:
        """Return pixels (B, 3, 16 h, 16 w), near [-1, 1], of codes (B, h, w, C)."""
        pixels: Tensor = self.decoder(self.tokens(codes))
        return pixels


def load_unitok(weights: Weights, config: UniTokConfig | None = None) -> AutoencoderTokenizer:
    """Return UniTok's tokenizer.

    The weights are memory-mapped, so the file must not change.

    Args:
        weights: ``unitok_tokenizer.pth`` as published, or tensors by the names in its ``trainer.unitok``, also as a
            file.
        config: sizes; None: the published ones.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or does not fit.
    """
    with without_values():
        unitok = UniTok(config or UniTokConfig())
    tensors = read_unitok(weights)
    load_strict(unitok, tensors, source=weights, name_in_file=unitok_name, ignored=_IGNORED, mapped=True)
    return unitok.tokenizer()


def read_unitok(weights: Weights) -> dict[str, Any]:
    """Return name -> tensor of a UniTok file, which has its discriminator and optimizers beside the model."""
    content = weights if isinstance(weights, Mapping) else read_tensors(weights)
    trainer = content.get("trainer")
    return state_dict_in(trainer if isinstance(trainer, Mapping) else content, ("unitok",), source=weights)


def unitok_name(name: str) -> str:
    """Return the name in a file of a tensor of :class:`UniTok`."""
    return published_name(name, _NAMES)


class Encoder(nn.Module):
    """ViTamin: convolutions to 1/16 of the sides, then a transformer without positions."""

    def __init__(self, config: UniTokConfig) -> None:
        from timm.models.vitamin import MbConvStages, VitCfg

        super().__init__()
        sizes = VitCfg(
            embed_dim=(*config.stages, config.width), depths=(*config.stage_depths, 1), stem_width=config.stem
        )
        self.convolutions = MbConvStages(sizes)
        #: Added to every position; zero in the published file.
        self.pos_embed = nn.Parameter(torch.zeros(1, 1, config.width))
        self.blocks = _blocks(config)
        self.norm = nn.LayerNorm(config.width, eps=1e-6)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return features (B, D, h, w) of pixels (B, 3, H, W)."""
        x_BDhw = self.convolutions(pixels)
        x_BND = _as_row(x_BDhw) + self.pos_embed
        return _as_map(self.norm(self.blocks(x_BND)), x_BDhw)


class Decoder(nn.Module):
    """A transformer without positions, then convolutions that double the sides four times."""

    def __init__(self, config: UniTokConfig) -> None:
        from timm.layers import LayerNormAct2d
        from timm.models.vitamin import MbConvLNBlock

        super().__init__()
        narrow, wide = config.stages
        before, after = config.up_depths
        self.blocks = _blocks(config)
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.up_conv1 = Upsample(config.width, wide)
        self.up_conv2 = nn.Sequential(UpBlock(wide, wide), *(MbConvLNBlock(wide, wide) for _ in range(before - 1)))
        self.up_conv3 = nn.Sequential(UpBlock(wide, narrow), *(MbConvLNBlock(narrow, narrow) for _ in range(after - 1)))
        self.up_conv4 = nn.Sequential(
            Upsample(narrow, narrow),
            LayerNormAct2d(narrow, eps=1e-6, act_layer=nn.GELU),
            nn.Conv2d(narrow, 3, 3, padding=1),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Return pixels (B, 3, 16 h, 16 w) of tokens (B, D, h, w)."""
        x_BDhw = _as_map(self.norm(self.blocks(_as_row(tokens))), tokens)
        pixels: Tensor = self.up_conv4(self.up_conv3(self.up_conv2(self.up_conv1(x_BDhw))))
        return pixels


class Upsample(nn.Module):
    """Nearest neighbour to twice the sides, then a 3 x 3 convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs, 2 h, 2 w) of (B, inputs, h, w)."""
        y: Tensor = self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        return y

    def folded(self) -> nn.ConvTranspose2d:
        """Return the same function as one transposed convolution, which multiplies 4 times per output instead of 9.

        Each of the 3 x 3 weights meets 2 x 2 equal numbers: together they are a kernel of 4 x 4 with stride 2.
        """
        flipped = self.conv.weight.detach().flip(2, 3).transpose(0, 1)
        kernel = flipped.new_zeros(*flipped.shape[:2], 4, 4)
        for down in (0, 1):
            for right in (0, 1):
                kernel[:, :, down : down + 3, right : right + 3] += flipped
        with without_values():
            folded = nn.ConvTranspose2d(self.conv.in_channels, self.conv.out_channels, 4, stride=2, padding=1)
        folded.weight = nn.Parameter(kernel.contiguous(memory_format=torch.channels_last))
        folded.bias = self.conv.bias
        return folded


class UpBlock(nn.Module):
    """timm's MbConvLNBlock, which can halve the sides, with :class:`Upsample` to double them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        from timm.layers import LayerNorm2d

        super().__init__()
        inside = 4 * outputs
        self.shortcut = Upsample(inputs, outputs)
        self.pre_norm = LayerNorm2d(inputs, eps=1e-6)
        self.conv1_1x1 = nn.Conv2d(inputs, inside, 1)
        self.up = Upsample(inside, inside)
        self.conv2_kxk = nn.Conv2d(inside, inside, 3, padding=1, groups=inside)
        self.conv3_1x1 = nn.Conv2d(inside, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs, 2 h, 2 w) of (B, inputs, h, w)."""
        y_BMhw = self.up(F.gelu(self.conv1_1x1(self.pre_norm(x))))
        y: Tensor = self.conv3_1x1(F.gelu(self.conv2_kxk(y_BMhw))) + self.shortcut(x)
        return y


class Projection(nn.Module):
    """A block from one width to another: a linear shortcut, attention and an MLP."""

    def __init__(self, inputs: int, outputs: int) -> None:
        from timm.models.vitamin import GeGluMlp

        super().__init__()
        self.norm1, self.norm3, self.norm2 = nn.LayerNorm(inputs), nn.LayerNorm(inputs), nn.LayerNorm(outputs)
        self.attn = WidthAttention(inputs, outputs)
        self.proj = nn.Linear(inputs, outputs)
        self.mlp = GeGluMlp(outputs, 2 * outputs, act_layer="gelu_tanh")

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, outputs) of (B, N, inputs)."""
        x = self.proj(self.norm3(x)) + self.attn(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return x


class WidthAttention(nn.Module):
    """Attention whose heads are as wide as the smaller width; towards it they are averaged, away from it joined.

    Keys have no bias: it would add the same number to all scores of a query.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        wide, self.head_dim = max(inputs, outputs), min(inputs, outputs)
        self.narrows = outputs < inputs
        self.qkv = nn.Linear(inputs, 3 * wide, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(wide)), nn.Parameter(torch.zeros(wide))
        self.proj = nn.Linear(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, outputs) of (B, N, inputs)."""
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        qkv = F.linear(x, self.qkv.weight, bias).reshape(*x.shape[:2], 3, -1, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y_BTNd = F.scaled_dot_product_attention(q, k, v)
        y: Tensor = self.proj(y_BTNd.mean(1) if self.narrows else y_BTNd.transpose(1, 2).flatten(2))
        return y


def _blocks(config: UniTokConfig) -> nn.Sequential:
    from timm.models.vision_transformer import Block
    from timm.models.vitamin import GeGluMlp

    return nn.Sequential(
        *(
            Block(
                config.width,
                config.heads,
                mlp_ratio=2,
                qkv_bias=True,
                act_layer="gelu_tanh",
                norm_layer=partial(nn.LayerNorm, eps=1e-6),
                mlp_layer=GeGluMlp,
            )
            for _ in range(config.depth)
        )
    )


def _as_row(x: Tensor) -> Tensor:
    """Return (B, N, D) of a map (B, D, h, w)."""
    return x.flatten(2).transpose(1, 2)


def _as_map(x: Tensor, like: Tensor) -> Tensor:
    """Return a map (B, D, h, w) of (B, N, D), as large as another map."""
    return x.transpose(1, 2).reshape(len(x), -1, *like.shape[2:])
