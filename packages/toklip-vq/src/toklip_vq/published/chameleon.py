"""Chameleon's tokenizer, on our own towers: the classes of transformers have its encoder, but no decoder.

Ids are those of its own codebook, 0 to 8191: Chameleon's language model calls them ``IMGIMG...``, at other numbers.

Source: Chameleon, https://arxiv.org/abs/2405.09818; sizes as in transformers' ``ChameleonVQVAEConfig``, layers as in
facebookresearch/chameleon, chameleon/inference/vqgan.py. Pixels are in [-1, 1] there too (image_tokenizer.py).
"""

from __future__ import annotations

from pathlib import Path

import torch
from toklip_core.weights import load_strict

from toklip_vq.published.ibq import taming_name
from toklip_vq.sharded_weights import read_part
from toklip_vq.vqgan import VQGANConfig, VQGANTokenizer, build_vqgan

#: The published sizes; 512 px pictures, of which 32 x 32 ids are made.
CONFIG = VQGANConfig(codebook_size=8192, codebook_dim=256, metric="euclidean", attention=False)

#: In the original release, and in a model folder of transformers.
_PREFIXES = ("", "model.vqmodel.")

_IGNORED = {r"loss\..+": "the discriminator and the perceptual network of training"}


def load_chameleon(weights: Path, config: VQGANConfig = CONFIG) -> VQGANTokenizer:
    """Return Chameleon's tokenizer.

    Args:
        weights: ``tokenizer/vqgan.ckpt`` of the original release, or a model folder that has the decoder as well:
            transformers' own ``facebook/chameleon-7b`` has not.
        config: the sizes.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: the weights do not fit, or have no decoder.
    """
    part = read_part(weights, _PREFIXES)
    if "decoder.conv_in.weight" not in part:
        raise ValueError(
            f"{str(weights)!r} has the encoder of Chameleon's tokenizer but not its decoder, as have all models that "
            "transformers converted; take tokenizer/vqgan.ckpt of the original release"
        )
    with torch.device("meta"):
        vqgan = build_vqgan(config)
    levels = len(config.channel_multipliers)
    load_strict(
        vqgan,
        part.tensors,
        source=weights,
        name_in_file=lambda name: part.prefix + taming_name(name, levels),
        ignored=_IGNORED,
    )
    return VQGANTokenizer(vqgan)
