"""LlamaGen's tokenizers, VQ-16 and VQ-8, from their published files.

Source: Sun et al., https://arxiv.org/abs/2406.06525; sizes and names of FoundationVision/LlamaGen,
tokenizer/tokenizer_image/vq_model.py.
"""

from __future__ import annotations

from typing import Literal

from toklip_core.plugins import Weights
from toklip_core.weights import load_strict, read_weights, without_values

from toklip_vq.autoencoder import AutoencoderTokenizer
from toklip_vq.published.names import published_name
from toklip_vq.vqgan import VQGAN, VQGANConfig

#: The published sizes: 72 and 70 million weights.
CONFIGS = {
    "VQ-16": VQGANConfig(codebook_size=16384, codebook_dim=8, channel_multipliers=(1, 1, 2, 2, 4)),
    "VQ-8": VQGANConfig(codebook_size=16384, codebook_dim=8, channel_multipliers=(1, 2, 2, 4)),
}

#: Keys below which a file may keep its weights, the preferred first; a file without any of them is flat.
_LAYOUTS = ("ema", "model", "state_dict")

_IGNORED = {r"quantize\.codebook_used": "the ids of the last training steps, kept to report the use of the codebook"}

#: Our names -> LlamaGen's, applied in this order.
_NAMES = (
    (r"^codebook\.", "quantize.embedding."),
    (r"\.levels\.", ".conv_blocks."),
    (r"\.blocks\.", ".res."),
    (r"\.attentions\.", ".attn."),
    (r"\.middle\.", ".mid."),
    (r"\.shortcut\.", ".nin_shortcut."),
    (r"\.out\.", ".proj_out."),
    (r"\.(downsample|upsample)\.", r".\1.conv."),
)


def load_llamagen(weights: Weights | str, size: Literal["VQ-16", "VQ-8"] = "VQ-16") -> AutoencoderTokenizer:
    """Return a LlamaGen tokenizer with the weights of a file: .pt as published, or .safetensors.

    Args:
        weights: the file, or tensors by its names; the first of the layouts ``ema``, ``model``, ``state_dict`` and flat
            that a file has is used.
        size: VQ-16 or VQ-8, the downsampling factor.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or does not fit.
    """
    tensors = read_weights(weights, _LAYOUTS)
    with without_values():
        vqgan = VQGAN(CONFIGS[size])
    load_strict(vqgan, tensors, source=weights, name_in_file=llamagen_name, ignored=_IGNORED)
    return vqgan.tokenizer()


def llamagen_name(name: str) -> str:
    """Return LlamaGen's name of a tensor of :class:`~toklip_vq.vqgan.VQGAN`."""
    return published_name(name, _NAMES)
