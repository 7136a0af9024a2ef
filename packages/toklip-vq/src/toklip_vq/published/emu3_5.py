"""Emu3.5's tokenizer: IBQ of another size, whose codes are those with the largest inner product, as IBQ's are.

Source: Emu3.5, https://arxiv.org/abs/2510.26583; names and sizes of ``BAAI/Emu3.5-VisionTokenizer``, layers as in
baaivision/Emu3.5, src/vision_tokenizer/ibq.py. Pixels are in [-1, 1] there too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from toklip_core.config import validated
from toklip_core.plugins import Weights
from toklip_core.weights import load_strict, source_name, without_values
from torch import Tensor

from toklip_vq.autoencoder import AutoencoderTokenizer
from toklip_vq.published.ibq import taming_name
from toklip_vq.sharded_weights import read_tokenizer_tensors
from toklip_vq.vqgan import VQGAN, VQGANConfig

#: The published sizes: 455 million weights.
CONFIG = VQGANConfig(codebook_size=131072, codebook_dim=256, metric="dot", channels=256, blocks_per_resolution=4)

_BLOCK = re.compile(r"encoder\.down\.(\d+)\.block\.(\d+)\.")


def load_emu3_5(weights: Weights | str) -> AutoencoderTokenizer:
    """Return Emu3.5's tokenizer, of the sizes that the shapes of its weights have.

    Args:
        weights: the file or folder of ``BAAI/Emu3.5-VisionTokenizer`` (``model.safetensors`` or ``model.ckpt``), or
            tensors by its names.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: the weights do not fit.
    """
    own = read_tokenizer_tensors(weights, [""])
    config = _config_of(own.tensors, source_name(weights))
    with without_values():
        vqgan = VQGAN(config)
    levels = len(config.channel_multipliers)
    load_strict(vqgan, own.tensors, source=weights, name_in_file=lambda name: taming_name(name, levels))
    return vqgan.tokenizer()


def _config_of(tensors: Mapping[str, Tensor], source: str) -> VQGANConfig:
    """Return the sizes of a tokenizer; the published ones if the tensors that tell them are not there."""
    places = {(int(found[1]), int(found[2])) for name in tensors if (found := _BLOCK.match(name))}
    levels, blocks = (1 + max((place[axis] for place in places), default=-1) for axis in (0, 1))
    if not 0 < levels <= len(tensors):
        return CONFIG
    of_levels = [f"encoder.down.{level}.block.0.conv1" for level in range(levels)]
    names = ["quantize.embedding", "encoder.conv_in", "encoder.conv_out", *of_levels]
    shapes = [tensors[f"{name}.weight"].shape for name in names if f"{name}.weight" in tensors]
    if len(shapes) != len(names) or len(shapes[0]) != 2 or any(len(shape) < 2 for shape in shapes):
        return CONFIG
    (codes, width), (channels, *_), (z_channels, *_), *blocks_of_levels = shapes
    values = {
        "codebook_size": codes,
        "codebook_dim": width,
        "metric": "dot",
        "channels": channels,
        "channel_multipliers": [shape[0] // max(channels, 1) for shape in blocks_of_levels],
        "blocks_per_resolution": blocks,
        "z_channels": z_channels,
        "attention": any(name.startswith(f"encoder.down.{levels - 1}.attn.") for name in tensors),
    }
    return validated(VQGANConfig, values, source)
