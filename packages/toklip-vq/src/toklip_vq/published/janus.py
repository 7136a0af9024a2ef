"""The tokenizer that Janus and Janus-Pro draw with: LlamaGen's VQ-16, out of the weights of the whole model.

On our own towers, although transformers has ``JanusVQVAE``: that class looks for the nearest code among rows and
latents that are not normalised, while Janus's own code (and decoding in transformers, too) takes the directions
alone, so that pictures get other ids; and it decodes one size of picture only.

Ids are those of its own codebook, 0 to 16383; Janus has an embedding of its own for them, at the same numbers.

Source: Janus-Pro, https://arxiv.org/abs/2501.17811; deepseek-ai/Janus, janus/models/vq_model.py. Pixels are in [-1, 1]
there too (generation_inference.py).
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from toklip_core.weights import load_strict

from toklip_vq.published.llamagen import CONFIGS, llamagen_name
from toklip_vq.sharded_weights import read_part
from toklip_vq.vqgan import VQGANConfig, VQGANTokenizer, build_vqgan

#: In DeepSeek's files, and in those of transformers.
_PREFIXES = ("gen_vision_model.", "model.vqmodel.")

_IGNORED = {r".*quantize\.codebook_used": "the ids of the last training steps, kept to report the use of the codebook"}

#: LlamaGen's name -> transformers'.
_TRANSFORMERS = (
    (r"^encoder\.conv_blocks\.", "encoder.down."),
    (r"^decoder\.conv_blocks\.", "decoder.up."),
    (r"\.res\.", ".block."),
    (r"\.mid\.0\.", ".mid.block_1."),
    (r"\.mid\.1\.", ".mid.attn_1."),
    (r"\.mid\.2\.", ".mid.block_2."),
)


def load_janus(weights: Path, config: VQGANConfig = CONFIGS["VQ-16"]) -> VQGANTokenizer:
    """Return Janus's tokenizer.

    Args:
        weights: a file or folder of a whole Janus or Janus-Pro, as DeepSeek (``deepseek-ai/Janus-Pro-1B``) or
            transformers (``deepseek-community/Janus-Pro-1B``) writes it; the tokenizer's tensors alone are read.
        config: the sizes.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: the weights do not fit.
    """
    part = read_part(weights, _PREFIXES)
    layout = llamagen_name if part.prefix == _PREFIXES[0] else _transformers_name
    with torch.device("meta"):
        vqgan = build_vqgan(config)
    load_strict(
        vqgan, part.tensors, source=weights, name_in_file=lambda name: part.prefix + layout(name), ignored=_IGNORED
    )
    return VQGANTokenizer(vqgan)


def _transformers_name(name: str) -> str:
    name = llamagen_name(name)
    for pattern, replacement in _TRANSFORMERS:
        name = re.sub(pattern, replacement, name)
    return name
