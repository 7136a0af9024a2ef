"""Chameleon's tokenizer, on our own towers, because transformers has only its encoder.

Ids are rows of its own codebook, 0 to 8191. Chameleon's language model uses other numbers for them and calls them
``IMGIMG...``.

Source: Chameleon, https://arxiv.org/abs/2405.09818; sizes as in transformers' ``ChameleonVQVAEConfig``, layers as in
facebookresearch/chameleon, chameleon/inference/vqgan.py. Pixels are in [-1, 1] there too (image_tokenizer.py).
"""

from __future__ import annotations

from toklip_core.plugins import Weights
from toklip_core.weights import load_strict, source_name, without_values

from toklip_vq.autoencoder import AutoencoderTokenizer
from toklip_vq.published.ibq import taming_name
from toklip_vq.sharded_weights import read_tokenizer_tensors
from toklip_vq.vqgan import VQGAN, VQGANConfig

#: The published sizes; a picture of 512 px has 32 x 32 ids.
CONFIG = VQGANConfig(codebook_size=8192, codebook_dim=256, metric="euclidean", attention=False)

#: Prefixes in the original release, and in a model folder of transformers.
_PREFIXES = ("", "model.vqmodel.")

_IGNORED = {r"loss\..+": "the discriminator and the perceptual network of training"}


def load_chameleon(weights: Weights | str, config: VQGANConfig = CONFIG) -> AutoencoderTokenizer:
    """Return Chameleon's tokenizer.

    Args:
        weights: ``tokenizer/vqgan.ckpt`` of the original release, or a model folder with the decoder, which
            transformers' own ``facebook/chameleon-7b`` does not have.
        config: sizes.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: the weights do not fit, or have no decoder.
    """
    own = read_tokenizer_tensors(weights, _PREFIXES)
    if "decoder.conv_in.weight" not in own:
        raise ValueError(
            f"{source_name(weights)!r} has the encoder of Chameleon's tokenizer but not its decoder, as all models "
            "that transformers converted have; take tokenizer/vqgan.ckpt of the original release"
        )
    with without_values():
        vqgan = VQGAN(config)
    levels = len(config.channel_multipliers)
    load_strict(
        vqgan,
        own.tensors,
        source=weights,
        name_in_file=lambda name: own.prefix + taming_name(name, levels),
        ignored=_IGNORED,
    )
    return vqgan.tokenizer()
