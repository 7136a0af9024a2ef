"""VILA-U's tokenizer: 4 or 16 ids per position, each a residual of those before it, on the states of a SigLIP.

    pixels (B, 3, S, S) -> SigLIP without its last layer -> latents (B, h, w, C)
    latents -> nearest row -> what is left -> nearest row of the same table -> ... -> ids (B, h, w, Q)
    sum of the rows (B, h, w, C) -> post_quant_conv -> decoder of a VQGAN -> pixels (B, 3, S, S)

The learned positions of SigLIP fix the size of pictures.

Shape letters: B batch, S picture side, h and w the grid, Q levels, K codebook size, C codebook dim, SigLIP's
width.

Source: Wu et al., VILA-U, https://arxiv.org/abs/2409.04429; residual quantisation of Lee et al.,
https://arxiv.org/abs/2203.01941; names of mit-han-lab/vila-u, vila_u/model/multimodal_encoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from toklip_core.embeddings import TableEmbedding
from toklip_core.pictures import grid_of_size, refuse_other_grid
from toklip_core.plugins import Weights
from toklip_core.weights import load_strict, source_name, without_values
from torch import Tensor, nn

from toklip_vq.autoencoder import AutoencoderTokenizer
from toklip_vq.published.ibq import taming_name
from toklip_vq.published.siglip import LARGE_256, SO400M_384, SiglipSizes, SiglipStates, siglip_name, unused_names
from toklip_vq.quantizers import TableQuantizer
from toklip_vq.sharded_weights import read_tokenizer_tensors
from toklip_vq.towers import Decoder

if TYPE_CHECKING:
    from transformers import SiglipConfig, SiglipModel


@dataclass(frozen=True, kw_only=True)
class VilaUConfig:
    """The sizes of a VILA-U tokenizer."""

    siglip: SiglipSizes
    #: Number of levels Q, and codebook size K of all of them.
    levels: int = 4
    codebook_size: int = 16384
    #: Decoder: channels at full resolution, their multiples per level, blocks per level, channels of its input.
    channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks_per_resolution: int = 3
    z_channels: int = 256
    #: Side of the map that the decoder reads, to which that of the codes is resized.
    decoder_side: int = 16


#: Picture side -> sizes. Those of 256 fit the number and the bytes of the published tensors. Those of 384 are not
#: verified: no file or config was read, and decoder_side is that of a descendant of the code (songweii/DualToken).
VILA_U_CONFIGS = {
    256: VilaUConfig(siglip=LARGE_256),
    384: VilaUConfig(siglip=SO400M_384, levels=16, decoder_side=24),
}

_PREFIX = "rqvaesiglip."
_VISION = "siglip_model.vision_model."

_IGNORED = {
    r"rqvaesiglip\.(siglip_model\.)?logit_(scale|bias)": "the scale and bias of SigLIP's loss",
    r"rqvaesiglip\.siglip_model\.text_model\..+": "the text tower of SigLIP",
    r"rqvaesiglip\.quantizer\.codebooks\.\d+\.(cluster_size|embed)_ema": "statistics of training the table",
    r"rqtransformer\..+": "the small transformer with which the language model draws the levels of a position",
}

_IGNORED_BY_SIGLIP = {
    r"rqvaesiglip\.logit_(scale|bias)": "the scale and bias of SigLIP's loss once more",
    r"rqvaesiglip\.(quantizer|post_quant_conv|decoder)\..+": "the tokenizer",
    r"rqtransformer\..+": _IGNORED[r"rqtransformer\..+"],
}


class VilaU(nn.Module):
    """The towers of a VILA-U tokenizer: the SigLIP that makes latents, and the decoder that reads codes."""

    def __init__(self, config: VilaUConfig) -> None:
        super().__init__()
        self._size, self._grid = (config.siglip.image_size,) * 2, (config.siglip.side,) * 2
        self.decoder_side = config.decoder_side
        self.siglip = SiglipStates(config.siglip)
        self.post_quant_conv = nn.Conv2d(config.siglip.width, config.z_channels, 1)
        self.decoder = Decoder(
            tuple(config.channels * multiplier for multiplier in config.channel_multipliers[::-1]),
            blocks=config.blocks_per_resolution,
            z_channels=config.z_channels,
            groups=32,
            attention=True,
            patch_size=1,
        )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the grid (h, w) of a picture; ValueError unless it is of the one size."""
        return grid_of_size(height, width, size=self._size, grid=self._grid)

    def latents(self, pixels: Tensor) -> Tensor:
        """Return the latents (B, C, h, w) of pixels (B, 3, S, S) in [-1, 1]."""
        states_BNC: Tensor = self.siglip(pixels)
        batch, _, width = states_BNC.shape
        return states_BNC.mT.reshape(batch, width, *self._grid)

    def reconstruct(self, codes: Tensor) -> Tensor:
        """Return pixels (B, 3, S, S), near [-1, 1], of codes (B, h, w, C); ValueError if they are on another grid."""
        refuse_other_grid(codes.shape[1:3], self._grid)
        codes_BChw = codes.movedim(-1, 1).to(self.post_quant_conv.weight.dtype)
        if codes_BChw.shape[-1] != self.decoder_side:
            codes_BChw = F.interpolate(codes_BChw, size=(self.decoder_side,) * 2, mode="bilinear")
        pixels: Tensor = self.decoder(self.post_quant_conv(codes_BChw))
        return pixels


def load_vila_u(weights: Weights | str, config: VilaUConfig = VILA_U_CONFIGS[256]) -> AutoencoderTokenizer:
    """Return a VILA-U tokenizer.

    Args:
        weights: folder ``vision_tower`` of a VILA-U, its ``model.safetensors``, or tensors by the names of that file.
        config: sizes.

    Raises:
        FileNotFoundError: there are no such weights.
        LookupError: transformers is not installed.
        ValueError: the weights do not fit, or each level has a table of its own.
    """
    with without_values():
        network = VilaU(config)
        # One row more than codes: padding, which is never chosen.
        tables = [nn.Embedding(config.codebook_size + 1, config.siglip.width) for _ in range(config.levels)]
    own = read_tokenizer_tensors(weights, ("",), marker=f"{_PREFIX}quantizer.codebooks.0.weight")
    load_strict(
        nn.ModuleDict({"network": network, "tables": nn.ModuleList(tables)}),
        own.tensors,
        source=weights,
        name_in_file=lambda name: _PREFIX + vila_u_name(name, levels=len(config.channel_multipliers)),
        ignored=_IGNORED | unused_names(_PREFIX + _VISION, config.siglip),
    )
    rows = [table.weight.detach() for table in tables]
    if other := next((level for level, table in enumerate(rows) if not torch.equal(table, rows[0])), None):
        raise ValueError(
            f"{source_name(weights)!r} does not fit: {_PREFIX}quantizer.codebooks.{other}.weight is not the table of "
            "level 0, and VILA-U has one for all levels"
        )
    embedding = TableEmbedding([rows[0][:-1]] * config.levels, combine="sum", shared=True)
    return AutoencoderTokenizer(network, TableQuantizer(embedding, "euclidean"))


def load_vila_u_siglip(weights: Weights | str, config: SiglipConfig | None = None) -> SiglipModel:
    """Return the SigLIP in the file of a VILA-U, which was trained along, for its features of pictures and texts.

    It reads pixels in [-1, 1]. The tokenizer of texts is not in the file; vocabulary and length are those of Google's
    SigLIP (``google/siglip-large-patch16-256``).

    Args:
        weights: as for :func:`load_vila_u`.
        config: sizes of both towers; None: those of ``vila-u-256``.

    Raises:
        FileNotFoundError: there are no such weights.
        LookupError: transformers is not installed.
        ValueError: the weights do not fit.
    """
    vision = LARGE_256.vision_config()  # first, because it reports that transformers is missing
    from transformers import SiglipConfig, SiglipModel, SiglipTextConfig

    text = SiglipTextConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        projection_size=1024,
        bos_token_id=None,
        eos_token_id=1,
    )
    sizes = config or SiglipConfig(text_config=text, vision_config=vision)
    with without_values():
        siglip = SiglipModel(sizes)
    own = read_tokenizer_tensors(weights, ("",), marker=f"{_PREFIX}quantizer.codebooks.0.weight")
    load_strict(
        siglip,
        own.tensors,
        source=weights,
        name_in_file=lambda name: f"{_PREFIX}siglip_model.{name}",
        ignored=_IGNORED_BY_SIGLIP,
    )
    for tower, positions in (
        (siglip.text_model, sizes.text_config.max_position_embeddings),
        (siglip.vision_model, siglip.vision_model.embeddings.num_positions),
    ):  # files do not have these, and the meta device loses them
        tower.embeddings.position_ids = torch.arange(positions)[None]
    return siglip.eval()


def vila_u_name(name: str, levels: int) -> str:
    """Return the name, without ``rqvaesiglip.``, of a tensor of the network or the tables.

    Args:
        name: our name, after ``network.`` or ``tables.``.
        levels: number of levels of the decoder.
    """
    if name.startswith("tables."):
        return name.replace("tables.", "quantizer.codebooks.")
    name = name.removeprefix("network.")
    if name.startswith("siglip."):
        return _VISION + siglip_name(name.removeprefix("siglip."))
    return taming_name(name, levels)
