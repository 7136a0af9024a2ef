"""Emu3's vision tokenizer: towers and temporal layers from transformers, search and protocol from here.

It is a tokenizer of video, which turns four frames into one grid of ids; a picture is four equal frames. Ids are rows
of its own codebook, 0 to 32767. Emu3's language model uses another number for id i and calls it
``<|visual token {i:06d}|>``.

Shape letters: B batch, T frames, C codebook and latent dim (both 4), h = H/8, w = W/8.

Source: Emu3, https://arxiv.org/abs/2409.18869; names as in baaivision/Emu3, emu3/tokenizer/modeling_emu3visionvq.py;
pixels in [-1, 1] as in image_processing_emu3visionvq.py beside it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
from toklip_core.embeddings import TableEmbedding
from toklip_core.pictures import grid_by_factor
from toklip_core.plugins import Weights
from toklip_core.weights import load_strict, without_values
from torch import Tensor, nn

from toklip_vq.autoencoder import AutoencoderTokenizer
from toklip_vq.published.names import published_name
from toklip_vq.quantizers import TableQuantizer
from toklip_vq.sharded_weights import read_tokenizer_tensors

if TYPE_CHECKING:
    from transformers import Emu3VQVAE, Emu3VQVAEConfig

#: Prefixes in the published tokenizer, in a model folder of transformers, and in one written before transformers 4.52.
_PREFIXES = ("", "model.vqmodel.", "vqmodel.")

#: Name in transformers -> name in the published tokenizer, which is for the official remote code.
_OFFICIAL = (
    (r"\.(down|up)_block\.", "."),
    (r"\.middle_block\.", ".mid."),
    (r"\.attn_norm\.", ".attn_1.norm."),
    (r"\.attn_norms\.(\d+)\.", r".attn.\1.norm."),
    (r"\.([qkv])_proj\.", r".\1."),
    (r"\.out_proj\.", ".proj_out."),
)


class Emu3Vision(nn.Module):
    """The autoencoder of Emu3 for single pictures.

    The four frames of a picture are equal, and the towers treat each frame alone, so the towers run on one frame. Only
    the temporal layers, which are 4 channels wide, see four. When decoding, only the first of four frames is kept, so
    only that one goes through the tower. The results are the same, with a quarter of the work.

    Args:
        vqvae: model whose towers and temporal layers become part of this one.
    """

    def __init__(self, vqvae: Emu3VQVAE) -> None:
        super().__init__()
        config = vqvae.config
        self.frames: int = config.temporal_downsample_factor
        self.downsample_factor: int = vqvae.spatial_scale_factor
        self.encoder, self.decoder = vqvae.encoder, vqvae.decoder
        self.quant_conv, self.post_quant_conv = vqvae.quant_conv, vqvae.post_quant_conv
        self.encoder_time_conv, self.encoder_time_blocks = _take_temporal_layers(self.encoder)
        self.decoder_time_conv, self.decoder_time_blocks = _take_temporal_layers(self.decoder)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the grid (h, w) of a picture; ValueError unless its sides are multiples of 8."""
        return grid_by_factor(height, width, self.downsample_factor)

    def latents(self, pixels: Tensor) -> Tensor:
        """Return the latents (B, C, h, w), to compare with codes, of pixels (B, 3, H, W) in [-1, 1]."""
        frame_B1Chw = self.encoder(pixels[:, None].to(self.quant_conv.conv.weight.dtype))
        x_BCThw = frame_B1Chw.movedim(1, 2).repeat(1, 1, self.frames, 1, 1)
        for conv in self.encoder_time_conv:
            x_BCThw = _swish(conv(x_BCThw))
        for block in self.encoder_time_blocks:
            x_BCThw = block(x_BCThw)
        latents: Tensor = self.quant_conv(x_BCThw)
        return latents[:, :, 0]

    def reconstruct(self, codes: Tensor) -> Tensor:
        """Return pixels (B, 3, 8h, 8w), near [-1, 1], of codes (B, h, w, C)."""
        codes_BC1hw = codes.movedim(-1, 1)[:, :, None].to(self.post_quant_conv.conv.weight.dtype)
        # The decoder is also conditioned on the codes themselves, and both go through the same temporal layers.
        x_BCThw = torch.cat([self.post_quant_conv(codes_BC1hw), codes_BC1hw])
        for block in self.decoder_time_blocks:
            x_BCThw = block(x_BCThw)
        for conv in self.decoder_time_conv:
            x_BCThw = _swish(conv(x_BCThw))
        first_frame, steering = x_BCThw[:, :, :1].movedim(2, 1).chunk(2)
        pixels: Tensor = self.decoder(first_frame, steering)
        return pixels


def _take_temporal_layers(tower: nn.Module) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Take the temporal layers out of a tower and return them; the rest treats each frame alone."""
    conv, blocks = tower.time_conv, tower.time_res_stack
    assert isinstance(conv, nn.ModuleList) and isinstance(blocks, nn.ModuleList)
    tower.time_conv, tower.time_res_stack = nn.ModuleList(), nn.ModuleList()
    return conv, blocks


def _swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def load_emu3(weights: Weights | str, config: Emu3VQVAEConfig | None = None) -> AutoencoderTokenizer:
    """Return Emu3's tokenizer.

    Args:
        weights: the file or folder of ``BAAI/Emu3-VisionTokenizer``, or a folder of a whole Emu3 in transformers'
            layout (``Emu3-Chat-hf``), of which only the tokenizer's tensors are read.
        config: sizes; None: the published ones.

    Raises:
        FileNotFoundError: there are no such weights.
        LookupError: transformers is not installed.
        ValueError: the weights do not fit.
    """
    try:
        from transformers import Emu3VQVAE, Emu3VQVAEConfig
    except ModuleNotFoundError as error:
        raise LookupError(f"{error.name} is not installed: pip install 'toklip-vq[transformers]'") from error

    with without_values():
        vqvae = Emu3VQVAE(config or Emu3VQVAEConfig())
    own = read_tokenizer_tensors(weights, _PREFIXES)
    tensors, layout = own.tensors, _transformers_name
    if "encoder.mid.block_1.conv1.weight" in own:
        tensors, layout = {name: _linear(name, tensor) for name, tensor in tensors.items()}, _official_name
    load_strict(vqvae, tensors, source=weights, name_in_file=lambda name: own.prefix + layout(name))
    rows = vqvae.quantize.embedding.weight
    return AutoencoderTokenizer(Emu3Vision(vqvae), TableQuantizer(TableEmbedding([rows]), "euclidean"))


def _transformers_name(name: str) -> str:
    return name


def _official_name(name: str) -> str:
    return published_name(name, _OFFICIAL)


def _linear(name: str, tensor: Tensor) -> Tensor:
    """Return the weight (C, C) of a linear layer that equals a 1 x 1 convolution (C, C, 1, 1) inside attention."""
    return tensor.flatten(1) if re.search(r"\.(q|k|v|proj_out)\.weight$", name) else tensor
