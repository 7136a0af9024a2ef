"""IBQ's tokenizers (codebooks of 1024 to 262144), from the published Lightning files.

Such a file has the weights twice, see :mod:`toklip_vq.published.lightning`.

Source: Shi et al., https://arxiv.org/abs/2412.02692; sizes and names of TencentARC/SEED-Voken, configs/IBQ and
src/IBQ/modules.
"""

from __future__ import annotations

import re

from toklip_core.plugins import Weights
from toklip_core.weights import without_values

from toklip_vq.autoencoder import AutoencoderTokenizer
from toklip_vq.published.lightning import load_lightning
from toklip_vq.published.names import published_name
from toklip_vq.vqgan import VQGAN, VQGANConfig

#: Our names -> those of taming-transformers, which IBQ and Chameleon keep.
_NAMES = (
    (r"^codebook\.", "quantize.embedding."),
    (r"^encoder\.levels\.", "encoder.down."),
    (r"\.blocks\.", ".block."),
    (r"\.attentions\.", ".attn."),
    (r"\.middle\.0\.", ".mid.block_1."),
    (r"\.middle\.1\.", ".mid.attn_1."),
    (r"\.middle\.2\.", ".mid.block_2."),
    (r"\.shortcut\.", ".nin_shortcut."),
    (r"\.out\.", ".proj_out."),
    (r"\.(downsample|upsample)\.", r".\1.conv."),
)


def ibq_config(codebook_size: int) -> VQGANConfig:
    """Return the published sizes with a codebook of ``codebook_size`` x 256."""
    return VQGANConfig(codebook_size=codebook_size, codebook_dim=256, quantizer="ibq", blocks_per_resolution=4)


def load_ibq(weights: Weights | str, codebook_size: int, *, averaged: bool = True) -> AutoencoderTokenizer:
    """Return an IBQ tokenizer with the weights of a file: .ckpt as published, or its ``state_dict`` as .safetensors.

    Args:
        weights: the file, or tensors by its names.
        codebook_size: size of the codebook in the file.
        averaged: take the averaged weights (the published figures), or the raw ones (what TokLIP-XL was trained on).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or does not fit.
    """
    with without_values():
        vqgan = VQGAN(ibq_config(codebook_size))
    load_lightning(vqgan, weights, taming_name, averaged=averaged)
    return vqgan.tokenizer()


def taming_name(name: str, levels: int = 5) -> str:
    """Return the name that taming-transformers gives a tensor of :class:`~toklip_vq.vqgan.VQGAN`.

    Args:
        name: our name.
        levels: number of levels of a tower. taming counts the decoder's levels from full resolution down; we count
            them in the order in which they run.
    """
    name = re.sub(r"^decoder\.levels\.(\d+)", lambda found: f"decoder.up.{levels - 1 - int(found[1])}", name)
    return published_name(name, _NAMES)
