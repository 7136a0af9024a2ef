"""The tokenizer with which Janus and Janus-Pro draw: LlamaGen's VQ-16, read from the weights of the whole model.

It uses our own towers, although transformers has ``JanusVQVAE``. That class searches for the nearest code without
normalising codes and latents, but Janus's own code normalises both (as does decoding in transformers), so pictures
get other ids. It also decodes only one size of picture.

Ids are rows of its own codebook, 0 to 16383; Janus has a separate embedding for them, with the same numbers.

Source: Janus-Pro, https://arxiv.org/abs/2501.17811; deepseek-ai/Janus, janus/models/vq_model.py. Pixels are in [-1, 1]
there too (generation_inference.py).
"""

from __future__ import annotations

from toklip_core.plugins import Weights
from toklip_core.weights import load_strict, without_values

from toklip_vq.autoencoder import AutoencoderTokenizer
from toklip_vq.published.llamagen import CONFIGS, llamagen_name
from toklip_vq.published.names import published_name
from toklip_vq.sharded_weights import read_tokenizer_tensors
from toklip_vq.vqgan import VQGAN, VQGANConfig

#: Prefixes in DeepSeek's files, and in those of transformers.
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


def load_janus(weights: Weights | str, config: VQGANConfig = CONFIGS["VQ-16"]) -> AutoencoderTokenizer:
    """Return Janus's tokenizer.

    Args:
        weights: a file or folder of a whole Janus or Janus-Pro in the layout of DeepSeek
            (``deepseek-ai/Janus-Pro-1B``) or transformers (``deepseek-community/Janus-Pro-1B``). Only the tokenizer's
            tensors are read.
        config: sizes.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: the weights do not fit.
    """
    own = read_tokenizer_tensors(weights, _PREFIXES)
    layout = llamagen_name if own.prefix == _PREFIXES[0] else _transformers_name
    with without_values():
        vqgan = VQGAN(config)
    load_strict(
        vqgan, own.tensors, source=weights, name_in_file=lambda name: own.prefix + layout(name), ignored=_IGNORED
    )
    return vqgan.tokenizer()


def _transformers_name(name: str) -> str:
    return published_name(llamagen_name(name), _TRANSFORMERS)
