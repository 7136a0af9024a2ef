"""Emu3.5's tokenizer: IBQ of another size, whose codes are those with the largest inner product, as IBQ's are.

Source: Emu3.5, https://arxiv.org/abs/2510.26583; names and sizes of ``BAAI/Emu3.5-VisionTokenizer``, layers as in
baaivision/Emu3.5, src/vision_tokenizer/ibq.py. Pixels are in [-1, 1] there too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, Field, model_validator
from toklip_core.config import validated
from toklip_core.files import read_json_object
from toklip_core.plugins import Weights
from toklip_core.weights import load_strict, without_values

from toklip_vq.autoencoder import AutoencoderTokenizer
from toklip_vq.published.ibq import taming_name
from toklip_vq.sharded_weights import read_tokenizer_tensors
from toklip_vq.vqgan import VQGAN, VQGANConfig

#: The published sizes: 455 million weights.
CONFIG = VQGANConfig(codebook_size=131072, codebook_dim=256, metric="dot", channels=256, blocks_per_level=4)


class _Published(BaseModel):
    """The sizes in the ``config.json`` beside the published weights; its other fields are for the remote code."""

    codebook_size: int
    embed_dim: int
    z_channels: int
    ch: int
    ch_mult: tuple[int, ...] = Field(min_length=1)
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    resolution: int
    in_channels: Literal[3] = 3
    out_ch: Literal[3] = 3
    double_z: Literal[False] = False

    @model_validator(mode="after")
    def _attention_is_lowest(self) -> Self:
        sides = [self.resolution // 2**i for i in range(len(self.ch_mult))]
        if any(side in self.attn_resolutions for side in sides[:-1]):
            raise ValueError(f"attention at {self.attn_resolutions} is at other levels than the lowest, {sides[-1]}")
        return self

    def sizes(self) -> dict[str, object]:
        """Return the fields of :class:`~toklip_vq.vqgan.VQGANConfig`."""
        return {
            "codebook_size": self.codebook_size,
            "codebook_dim": self.embed_dim,
            "metric": "dot",
            "channels": self.ch,
            "channel_multipliers": self.ch_mult,
            "blocks_per_level": self.num_res_blocks,
            "z_channels": self.z_channels,
            "attention": self.resolution // 2 ** (len(self.ch_mult) - 1) in self.attn_resolutions,
        }


def load_emu3_5(weights: Weights | str) -> AutoencoderTokenizer:
    """Return Emu3.5's tokenizer, of the sizes in the ``config.json`` beside the weights, else of the published ones.

    Args:
        weights: the file or folder of ``BAAI/Emu3.5-VisionTokenizer`` (``model.safetensors`` or ``model.ckpt``), or
            tensors by its names.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: the config or the weights do not fit.
    """
    config = CONFIG
    if isinstance(weights, str | Path):
        path = Path(weights)
        file = (path if path.is_dir() else path.parent) / "config.json"
        if file.is_file():
            config = validated(VQGANConfig, validated(_Published, read_json_object(file), file).sizes(), file)
    own = read_tokenizer_tensors(weights, [""])
    with without_values():
        vqgan = VQGAN(config)
    levels = len(config.channel_multipliers)
    load_strict(vqgan, own.tensors, source=weights, name_in_file=lambda name: taming_name(name, levels))
    return vqgan.tokenizer()
