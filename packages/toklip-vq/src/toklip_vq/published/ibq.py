"""IBQ's tokenizers (codebooks of 1024 to 262144), from the published Lightning files.

Such a file has the weights twice: the raw weights under their names, and their moving average under ``model_ema.``
and the name without dots. The published figures were measured with the averaged weights.

Source: Shi et al., https://arxiv.org/abs/2412.02692; sizes and names of TencentARC/SEED-Voken, configs/IBQ and
src/IBQ/modules.
"""

from __future__ import annotations

import re

import torch
from toklip_core.plugins import Weights
from toklip_core.weights import load_strict, read_weights, source_name

from toklip_vq.autoencoder import AutoencoderTokenizer
from toklip_vq.vqgan import VQGAN, VQGANConfig

_LOSS = {
    r"loss\..+": "the discriminator and the perceptual network of training",
    r"model_ema\.(decay|num_updates|loss.+)": "the average's own state, and the discriminator's average",
}
_RAW = {r"(encoder|decoder|quantize|quant_conv|post_quant_conv)\..+": "the averaged weights are taken"}
_AVERAGED = {r"model_ema\..+": "the raw weights were asked for"}

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
    return VQGANConfig(codebook_size=codebook_size, codebook_dim=256, metric="dot", blocks_per_level=4)


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
    tensors = read_weights(weights, ("state_dict",))
    with torch.device("meta"):
        vqgan = VQGAN(ibq_config(codebook_size))
    if averaged and not any(name.startswith("model_ema.") for name in tensors):
        raise ValueError(
            f"{source_name(weights)!r} has no averaged weights (model_ema.*); take the raw ones: the tokenizer's name "
            "with -raw, or averaged=False"
        )
    if averaged:
        load_strict(vqgan, tensors, source=weights, name_in_file=_averaged_name, ignored=_LOSS | _RAW)
    else:
        load_strict(vqgan, tensors, source=weights, name_in_file=taming_name, ignored=_LOSS | _AVERAGED)
    return vqgan.tokenizer()


def taming_name(name: str, levels: int = 5) -> str:
    """Return the name that taming-transformers gives a tensor of :class:`~toklip_vq.vqgan.VQGAN`.

    Args:
        name: our name.
        levels: number of levels of a tower. taming counts the decoder's levels from full resolution down; we count
            them in the order in which they run.
    """
    name = re.sub(r"^decoder\.levels\.(\d+)", lambda found: f"decoder.up.{levels - 1 - int(found[1])}", name)
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _averaged_name(name: str) -> str:
    return "model_ema." + taming_name(name).replace(".", "")
