"""QLIP's tokenizers: two EVA transformers around a binary spherical quantizer (BSQ), from the published files.

    pixels (B, 3, S, S) -> encoder -> latents (B, g, g, C) -> signs -> ids (B, g, g, 1), one of 2^C per position
    ids -> codes (B, g, g, C), each number 1 / sqrt(C) or minus that -> decoder -> pixels (B, 3, S, S)

Positions are learned, so a tokenizer takes pictures of one size. The blocks are timm's, which have the layers and
numbers of QLIP's.

Shape letters: B batch, S picture side, p patch side, g = S/p, N = g^2 patches, D width, C bits.

Source: Zhao et al., https://arxiv.org/abs/2502.05178; names and sizes of NVlabs/QLIP, QLIP/modeling_qlip.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, model_validator
from toklip_core.config import LARGEST_COUNT, LARGEST_SIDE, LARGEST_WIDTH, MOST_LAYERS, Config, validated
from toklip_core.embeddings import MOST_BITS, BitEmbedding
from toklip_core.files import read_json_object
from toklip_core.pictures import grid_of_size, refuse_other_grid
from toklip_core.plugins import Weights
from toklip_core.weights import CONFIG_FILE, WEIGHTS_FILE, load_strict, read_weights, source_name, without_values
from torch import Tensor, nn

from toklip_vq.autoencoder import AutoencoderTokenizer
from toklip_vq.onednn import OneDNNLinear, replace_modules
from toklip_vq.published.names import published_name
from toklip_vq.quantizers import BitQuantizer

if TYPE_CHECKING:
    from transformers import CLIPTextModelWithProjection

#: Positions a side that the rotary frequencies are scaled to, whatever the grid is; pt_seq_len of the official code.
_ROTARY_SIDE = 16

#: Width of a head in all published sizes.
_HEAD_WIDTH = 64

_TABLES = {r"(vision_model|vision_decoder)\..*rope\.freqs_(cos|sin)": "the rotary tables, which are computed"}
_TOWERS = {
    r"text_model\..+|text_projection\.weight": "the tower of texts, which no tokenizer needs",
    r"vision_model\.post_layernorm\..+|visual_projection\..+": "the way from the class token to a feature",
    r"logit_scale": "the factor on cosines of features",
}
_TOKENIZER = {r"vision_model\.quant_embed.*|vision_decoder\..+": "the quantizer and the decoder"}

#: Our names -> QLIP's, applied in this order.
_NAMES = (
    (r"^encoder\.(class_embedding|patch_embedding|position_embedding)", r"vision_model.embeddings.\1"),
    (r"^(quant_embed|quant_embed_post)\.0\.", r"vision_model.\1.c_fc."),
    (r"^(quant_embed|quant_embed_post)\.2\.", r"vision_model.\1.c_proj."),
    (r"^(encoder\.|(?=post_layernorm\.))", "vision_model."),
    (r"^decoder\.", "vision_decoder."),
    (r"\.trunk\.blocks\.", ".encoder.layers."),
    (r"\.norm([12])\.", r".layer_norm\1."),
    (r"\.attn\.norm\.", ".self_attn.inner_attn_ln."),
    (r"\.attn\.proj\.", ".self_attn.out_proj."),
    (r"\.attn\.", ".self_attn."),
    (r"\.mlp\.fc1_g\.", ".mlp.w1."),
    (r"\.mlp\.fc1_x\.", ".mlp.w2."),
    (r"\.mlp\.fc2\.", ".mlp.w3."),
    (r"\.mlp\.norm\.", ".mlp.ffn_ln."),
)


class TrunkSizes(Config):
    """The sizes of one of the two transformers."""

    width: int = Field(gt=0, le=LARGEST_WIDTH, description="Width D of a token.")
    depth: int = Field(gt=0, le=MOST_LAYERS, description="Number of blocks.")
    heads: int = Field(gt=0, le=LARGEST_WIDTH, description="Number of attention heads.")
    hidden: int = Field(gt=0, le=LARGEST_WIDTH, description="Hidden width of the MLPs.")
    norm_eps: float = Field(default=1e-6, gt=0, description="Epsilon of the layer norms.")

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.width % (4 * self.heads):  # a sine and a cosine for the row, and for the column
            raise ValueError(f"width ({self.width}) must be a multiple of 4 heads ({self.heads})")
        return self


class QLIPSizes(Config):
    """The sizes of a QLIP without its text tower."""

    patch_size: int = Field(gt=0, le=LARGEST_SIDE, description="Side p of a patch in pixels.")
    grid: int = Field(gt=0, le=LARGEST_SIDE, description="Number g of patches per side.")
    bits: int = Field(gt=0, le=MOST_BITS, description="Number C of bits of an id.")
    encoder: TrunkSizes
    decoder: TrunkSizes

    @property
    def image_size(self) -> int:
        """Side S of the pictures in pixels."""
        return self.patch_size * self.grid


class _TextSizes(BaseModel):
    """The sizes of the tower of texts, as transformers names them."""

    vocab_size: int = Field(gt=0, le=LARGEST_COUNT)
    hidden_size: int = Field(gt=0, le=LARGEST_WIDTH)
    max_position_embeddings: int = Field(gt=0, le=LARGEST_COUNT)
    num_hidden_layers: int = Field(gt=0, le=MOST_LAYERS)
    intermediate_size: int = Field(gt=0, le=LARGEST_WIDTH)
    projection_dim: int = Field(gt=0, le=LARGEST_WIDTH)
    num_attention_heads: int = Field(gt=0, le=LARGEST_WIDTH)
    layer_norm_eps: float = Field(gt=0, lt=1)

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of {self.num_attention_heads} heads")
        return self


class Trunk(nn.Module):
    """A stack of timm's EVA blocks with rotary positions on a square of patches, without gradients.

    Args:
        sizes: sizes of the blocks.
        grid: patches a side.
        prefix: number of tokens before the patches, which have no place.
    """

    def __init__(self, sizes: TrunkSizes, grid: int, prefix: int) -> None:
        super().__init__()
        from timm.layers import RotaryEmbeddingCat
        from timm.models.eva import EvaBlock

        self.blocks = nn.ModuleList(
            EvaBlock(
                sizes.width,
                sizes.heads,
                qkv_fused=False,
                mlp_ratio=(sizes.hidden + 0.5) / sizes.width,  # timm rounds the product down
                swiglu_mlp=True,
                scale_mlp=True,
                scale_attn_inner=True,
                num_prefix_tokens=prefix,
                norm_layer=partial(nn.LayerNorm, eps=sizes.norm_eps),
            )
            for _ in range(sizes.depth)
        )
        with torch.device("cpu"):  # a table that is in no file of ours, so it must not stay on the meta device
            rotary = RotaryEmbeddingCat(
                sizes.width // sizes.heads,
                in_pixels=False,
                feat_shape=[grid, grid],
                ref_feat_shape=[_ROTARY_SIDE, _ROTARY_SIDE],
            )
        self.register_buffer("rotary", rotary.get_embed(), persistent=False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (B, prefix + N, D) of tokens of the same shape, without a norm after the last block.

        The blocks' own ``forward`` takes 1.05 times as long, with a copy for each step. No gradient.
        """
        sin, cos = self.get_buffer("rotary").float().chunk(2, dim=-1)  # each number stands there twice in a row
        turn_N1d = torch.complex(cos[:, ::2].contiguous(), sin[:, ::2].contiguous())[:, None]
        for block in cast("Iterable[Any]", self.blocks):
            attn, mlp, y = block.attn, block.mlp, block.norm1(x)
            q, k, v = (proj(y).unflatten(-1, (attn.num_heads, -1)) for proj in (attn.q_proj, attn.k_proj, attn.v_proj))
            for heads in (q, k):
                _rotate(heads[:, -len(turn_N1d) :], turn_N1d)
            y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
            x = x + attn.proj(attn.norm(y.transpose(1, 2).flatten(2)))
            y = block.norm2(x)
            x += mlp.fc2(mlp.norm(F.silu(mlp.fc1_g(y), inplace=True).mul_(mlp.fc1_x(y))))
        return x


def _rotate(heads: Tensor, turn: Tensor) -> None:
    """Rotate pairs of numbers of heads (B, N, H, d) in place, as complex numbers, by ``turn`` (N, 1, d / 2)."""
    pairs = torch.view_as_complex(heads.float().reshape(*heads.shape[:-1], -1, 2))
    heads.copy_(torch.view_as_real(pairs * turn).flatten(-2))


class QLIPEncoder(nn.Module):
    """Transformer from normalised pixels (B, 3, S, S) to tokens (B, 1 + N, D): a class token, then the patches."""

    def __init__(self, sizes: QLIPSizes) -> None:
        super().__init__()
        width = sizes.encoder.width
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.patch_embedding = nn.Conv2d(3, width, sizes.patch_size, sizes.patch_size)
        self.position_embedding = nn.Embedding(1 + sizes.grid**2, width)
        self.trunk = Trunk(sizes.encoder, sizes.grid, prefix=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return tokens (B, 1 + N, D) of pixels (B, 3, S, S) in [-1, 1]."""
        patches_BND = self.patch_embedding(_normalised(pixels).to(self.class_embedding.dtype)).flatten(2).mT
        tokens_BND = torch.cat([self.class_embedding.expand(len(pixels), 1, -1), patches_BND], dim=1)
        tokens: Tensor = self.trunk(tokens_BND + self.position_embedding.weight)
        return tokens


class QLIPDecoder(nn.Module):
    """Transformer from tokens (B, N, D) of codes to pixels (B, 3, S, S), near [-1, 1]."""

    def __init__(self, sizes: QLIPSizes) -> None:
        super().__init__()
        width, hidden = sizes.decoder.width, sizes.decoder.hidden
        self.grid, self.patch_size = sizes.grid, sizes.patch_size
        self.position_embeddings = nn.Parameter(torch.zeros(1, sizes.grid**2, width))
        self.trunk = Trunk(sizes.decoder, sizes.grid, prefix=0)
        self.norm = nn.LayerNorm(width, eps=sizes.decoder.norm_eps)
        self.ffn = nn.Sequential(nn.Linear(width, hidden), nn.Tanh())
        self.conv_out = nn.Linear(hidden, 3 * sizes.patch_size**2)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return pixels (B, 3, S, S), near [-1, 1], of tokens (B, N, D)."""
        patches = self.conv_out(self.ffn(self.norm(self.trunk(tokens + self.position_embeddings))))
        # A patch is (channel, row, column).
        patches = patches.unflatten(-1, (3, self.patch_size, self.patch_size)).unflatten(1, (self.grid, self.grid))
        return _denormalised(patches.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3).float())


class QLIP(nn.Module):
    """Encoder and decoder with fresh weights; an :class:`~toklip_vq.autoencoder.Autoencoder`.

    >>> small = TrunkSizes(width=32, depth=1, heads=2, hidden=48)
    >>> tokenizer = QLIP(QLIPSizes(patch_size=8, grid=4, bits=28, encoder=small, decoder=small)).tokenizer()
    >>> tokenizer.encode(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 4, 4, 1])
    """

    def __init__(self, sizes: QLIPSizes) -> None:
        super().__init__()
        self.sizes = sizes
        widths = sizes.encoder.width, sizes.decoder.width
        self.encoder = QLIPEncoder(sizes)
        self.quant_embed = nn.Sequential(nn.Linear(widths[0], widths[0]), nn.GELU(), nn.Linear(widths[0], sizes.bits))
        self.quant_embed_post = nn.Sequential(
            nn.Linear(sizes.bits, widths[1]), nn.GELU(), nn.Linear(widths[1], widths[1])
        )
        self.decoder = QLIPDecoder(sizes)

    def tokenizer(self) -> AutoencoderTokenizer:
        """Return the frozen tokenizer, which takes over the weights: the QLIP cannot be used again.

        Codes are the corners of a cube on the unit sphere.
        """
        replace_modules(self, nn.Linear, OneDNNLinear.of)
        bits = self.sizes.bits
        return AutoencoderTokenizer(self, BitQuantizer(BitEmbedding(bits, scale=1 / math.sqrt(bits), order="big")))

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the grid (g, g); ValueError, with the one size that it takes, for a picture of another size."""
        return grid_of_size(height, width, size=(self.sizes.image_size,) * 2, grid=(self.sizes.grid,) * 2)

    def latents(self, pixels: Tensor) -> Tensor:
        """Return the latents (B, C, g, g), whose signs are the bits, of pixels (B, 3, S, S) in [-1, 1].

        They are not brought to unit norm, which would change no sign.
        """
        latents_BNC: Tensor = self.quant_embed(self.encoder(pixels)[:, 1:])
        return latents_BNC.mT.reshape(len(pixels), -1, self.sizes.grid, self.sizes.grid)

    def reconstruct(self, codes: Tensor) -> Tensor:
        """Return pixels (B, 3, S, S), near [-1, 1], of codes (B, g, g, C); ValueError for another grid."""
        refuse_other_grid(codes.shape[1:3], (self.sizes.grid,) * 2)
        pixels: Tensor = self.decoder(self.tokens(codes))
        return pixels

    def tokens(self, codes: Tensor) -> Tensor:
        """Return the tokens (B, N, D), which the decoder reads, of codes (B, g, g, C)."""
        tokens: Tensor = self.quant_embed_post(codes.flatten(1, 2).to(self.decoder.position_embeddings.dtype))
        return tokens


def _normalised(pixels: Tensor) -> Tensor:
    """Return pixels in [-1, 1] in CLIP's units."""
    mean, std = _clip_units(pixels)
    return (pixels / 2 + 0.5 - mean) / std


def _denormalised(pixels: Tensor) -> Tensor:
    """Return pixels in CLIP's units in [-1, 1]."""
    mean, std = _clip_units(pixels)
    return (pixels * std + mean) * 2 - 1


def _clip_units(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (3, 1, 1) of red, green and blue in [0, 1], by which CLIP normalises."""
    from timm.data.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    return pixels.new_tensor(OPENAI_CLIP_MEAN).view(3, 1, 1), pixels.new_tensor(OPENAI_CLIP_STD).view(3, 1, 1)


def load_qlip(
    weights: Weights | str, patch_size: int | None = None, image_size: int | None = None
) -> AutoencoderTokenizer:
    """Return a QLIP tokenizer with the weights of a file: model.safetensors as published.

    All sizes are read from the file's own tensors. What they do not tell, the number of heads where the file has no
    rotary tables and the epsilon of the norms, is read from the ``config.json`` of a folder. A file is taken alone, so
    that a copy of it elsewhere is the same tokenizer: its heads are 64 wide and the epsilon is 1e-6, as published.

    Args:
        weights: the file, its folder, or tensors by its names.
        patch_size: patch size that the file must have; None: any.
        image_size: side of its pictures that the file must have; None: any.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or does not fit.
    """
    file = _File.read(weights)
    sizes = file.sizes()
    for what, got, wanted in (("patches", sizes.patch_size, patch_size), ("pictures", sizes.image_size, image_size)):
        if wanted not in (None, got):
            raise ValueError(
                f"{source_name(file.source)!r} is a QLIP with {what} of {got} px, not {wanted}; name the tokenizer by "
                "the file's sizes, or take another file"
            )
    with without_values():
        qlip = QLIP(sizes)
    load_strict(qlip, file.tensors, source=file.source, name_in_file=qlip_name, ignored=_TABLES | _TOWERS)
    return qlip.tokenizer()


class QLIPTowers(nn.Module):
    """The towers of pictures and texts in a QLIP: features in one space, without a step through the quantizer.

    Args:
        sizes: sizes of the tower of pictures.
        text: tower of texts; its projection gives the width of the space.
        bias: whether the projection of pictures has a bias.
    """

    def __init__(self, sizes: QLIPSizes, text: CLIPTextModelWithProjection, *, bias: bool) -> None:
        super().__init__()
        self.encoder = QLIPEncoder(sizes)
        self.post_layernorm = nn.LayerNorm(sizes.encoder.width, eps=sizes.encoder.norm_eps)
        self.visual_projection = nn.Linear(sizes.encoder.width, text.config.projection_dim, bias=bias)
        self.text = text
        #: Logarithm of the factor on cosines.
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))

    def image_features(self, pixels: Tensor) -> Tensor:
        """Return unit features (B, E) of pixels (B, 3, S, S) in [-1, 1]: of the class token."""
        return F.normalize(self.visual_projection(self.post_layernorm(self.encoder(pixels)[:, 0])), dim=-1)

    def text_features(self, ids: Tensor) -> Tensor:
        """Return unit features (T, E) of texts as ids (T, L) of CLIP's tokenizer, such as ``open_clip.tokenize``."""
        return F.normalize(self.text(ids).text_embeds, dim=-1)


def load_qlip_towers(weights: Weights | str) -> QLIPTowers:
    """Return the towers with which QLIP compares pictures and texts, from the file of its tokenizer; frozen.

    Args:
        weights: as for :func:`load_qlip`. Heads of the tower of texts are 64 wide, unless the ``config.json`` of a
            folder tells their number.

    Raises:
        FileNotFoundError: there is no such file.
        LookupError: transformers is not installed.
        ValueError: the file is damaged or does not fit.
    """
    try:
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection
    except ModuleNotFoundError as error:
        raise LookupError(f"{error.name} is not installed: pip install 'toklip-vq[transformers]'") from error

    file = _File.read(weights)
    sizes = validated(_TextSizes, file.text_sizes(), source_name(file.source)).model_dump()
    text = CLIPTextConfig(**sizes, hidden_act="gelu", bos_token_id=0, eos_token_id=2)
    bias = "visual_projection.bias" in file.tensors
    with without_values():
        towers = QLIPTowers(file.sizes(), CLIPTextModelWithProjection(text), bias=bias)
    load_strict(towers, file.tensors, source=file.source, name_in_file=_towers_name, ignored=_TABLES | _TOKENIZER)
    # Files do not have these, and the meta device loses them.
    towers.text.text_model.embeddings.position_ids = torch.arange(text.max_position_embeddings)[None]
    replace_modules(towers.encoder, nn.Linear, OneDNNLinear.of)
    return towers.requires_grad_(False).eval()


def qlip_name(name: str) -> str:
    """Return QLIP's name of a tensor of :class:`QLIP`."""
    return published_name(name, _NAMES)


def _towers_name(name: str) -> str:
    return name.removeprefix("text.") if name.startswith("text.") else qlip_name(name)


@dataclass(frozen=True)
class _File:
    """Tensors of a QLIP, and the ``config.json`` of its folder, from which its sizes are read."""

    source: Weights
    tensors: dict[str, Any]
    config: dict[str, Any]

    @classmethod
    def read(cls, weights: Weights | str) -> _File:
        if isinstance(weights, Mapping):
            return cls(weights, read_weights(weights), {})
        path = Path(weights)
        if not path.is_dir():
            return cls(path, read_weights(path), {})
        file, config = path / WEIGHTS_FILE, path / CONFIG_FILE
        return cls(file, read_weights(file), read_json_object(config) if config.is_file() else {})

    def sizes(self) -> QLIPSizes:
        """Return the sizes of all but the tower of texts."""
        embeddings = "vision_model.embeddings"
        values = {
            "patch_size": self._size(f"{embeddings}.patch_embedding.weight", 2),
            "grid": math.isqrt(max(self._size(f"{embeddings}.position_embedding.weight", 0) - 1, 0)),
            "bits": self._size("vision_model.quant_embed.c_proj.weight", 0),
            "encoder": self._trunk("vision_model", f"{embeddings}.class_embedding", "vision_config"),
            "decoder": self._trunk("vision_decoder", "vision_decoder.norm.weight", "decoder_config"),
        }
        return validated(QLIPSizes, values, source_name(self.source))

    def text_sizes(self) -> dict[str, Any]:
        """Return the sizes of the tower of texts, as transformers names them."""
        words, told = "text_model.embeddings.token_embedding.weight", self._told("text_config")
        width = self._size(words, 1)
        return {
            "vocab_size": self._size(words, 0),
            "hidden_size": width,
            "max_position_embeddings": self._size("text_model.embeddings.position_embedding.weight", 0),
            "num_hidden_layers": self._layers("text_model"),
            "intermediate_size": self._size("text_model.encoder.layers.0.mlp.fc1.weight", 0),
            "projection_dim": self._size("text_projection.weight", 0),
            "num_attention_heads": told.get("num_attention_heads", width // _HEAD_WIDTH),
            "layer_norm_eps": told.get("layer_norm_eps", 1e-5),
        }

    def _trunk(self, tower: str, norm: str, config: str) -> dict[str, Any]:
        told, rotary, width = self._told(config), f"{tower}.rope.freqs_cos", self._size(norm, 0)
        if rotary in self.tensors:  # its rows are as wide as a head
            heads = width // max(self._size(rotary, 1), 1)
        else:
            heads = told.get("num_attention_heads", width // _HEAD_WIDTH)
        return {
            "width": width,
            "depth": self._layers(tower),
            "heads": heads,
            "hidden": self._size(f"{tower}.encoder.layers.0.mlp.w1.weight", 0),
            "norm_eps": told.get("layer_norm_eps", 1e-6),
        }

    def _told(self, config: str) -> dict[str, Any]:
        told = self.config.get(config)
        return told if isinstance(told, dict) else {}

    def _layers(self, tower: str) -> int:
        pattern = re.compile(rf"{tower}\.encoder\.layers\.(\d+)\.")
        return len({found[1] for name in self.tensors if (found := pattern.match(name))})

    def _size(self, name: str, axis: int) -> int:
        shape = getattr(self.tensors.get(name), "shape", None)
        if shape is None:
            raise ValueError(f"{source_name(self.source)!r} does not fit: missing: {name}; wanted the file of a QLIP")
        return int(shape[axis]) if len(shape) > axis else 0
