"""UniTok as a CLIP: one vector for the ids of a picture and one for a text, in the same space.

    ids (B, h, w, Q) -> tokens (B, N, D) -> mean -> norm -> linear -> pooled (B, E)        texts -> text -> (T, E)

The picture's vector is made of its ids alone, so it can be computed from a token store.

Shape letters: B batch, S picture side, h and w the grid of ids, Q levels, N = h w, D width, T texts, E joint space.

Source: Ma et al., UniTok, https://arxiv.org/abs/2502.20321; names of FoundationVision/UniTok, models/unitok.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from toklip_core.model import Encoding, TextConfig, TextTokenizer, TextTower
from toklip_core.pictures import refuse_pixels
from toklip_core.plugins import Weights
from toklip_core.tokenizer import Tokenizer
from toklip_core.weights import load_strict, refuse_not_finite, without_values
from torch import Tensor, nn

from toklip_vq.published.unitok import UniTok, UniTokConfig, load_unitok, read_unitok

_IGNORED = {r"(encoder|decoder|quantizer|quant_proj|post_quant_proj)\..+": "the tokenizer, which stands beside it"}

_SIZES = UniTokConfig()
#: The published text tower, as open_clip builds it for CLIP.
_TEXT = TextConfig(
    context_length=77,
    vocabulary=49408,
    width=768,
    heads=12,
    layers=12,
    activation="gelu",
    norm_eps=1e-5,
    causal=True,
    pooling="argmax",
    output_dim=768,
    projection_bias=False,
    clean="lower",
    tokenizer="clip",
)


@dataclass(frozen=True, kw_only=True)
class UniTokCLIPConfig:
    """The sizes of a UniTok with its text tower, and how pictures are made; the defaults are the published ones."""

    unitok: UniTokConfig = _SIZES
    text: TextConfig = _TEXT
    #: Side S of the square that is encoded, in pixels.
    image_size: int = 256
    resize: Literal["crop", "squash", "pad"] = "crop"


class UniTokCLIP(nn.Module):
    """What UniTok has beside its tokenizer: the way from tokens to a vector, and the text tower.

    The tokenizer is passed beside the model, as for :class:`toklip_core.model.TokLIP`: ``to()`` does not touch it. It
    follows the pictures to their device, and keeps its precision.

    Args:
        config: sizes and preprocessing.
        tokenizer: UniTok's tokenizer.
    """

    def __init__(self, config: UniTokCLIPConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.fc_norm = nn.LayerNorm(config.unitok.width, eps=1e-6)
        self.projection = nn.Linear(config.unitok.width, config.text.output_dim)
        self.text = TextTower(config.text, TextTokenizer(config.text, None))
        #: Logarithm of the factor on cosines.
        self.logit_scale = nn.Parameter(torch.zeros(()))

    def encode_ids(self, ids: Tensor) -> Encoding:
        """Return the encoding of ids (B, h, w, Q), such as those of a token store; ValueError if it is not finite."""
        codes = self.tokenizer.to(ids.device).embed(ids)
        unitok = cast(UniTok, self.tokenizer.module.autoencoder)
        tokens = unitok.tokens(codes).flatten(2).transpose(1, 2)
        pooled = self.projection(self.fc_norm(tokens.mean(1).to(self.projection.weight.dtype)))
        refuse_not_finite(pooled, "the model's feature")
        return Encoding(ids, codes, tokens, pooled)

    def image_features(self, pixels: Tensor) -> Tensor:
        """Return unit features (B, E), float32, of pixels (B, 3, S, S) in [-1, 1].

        Raises:
            ValueError: pixels are integers, or a number in pixels or results is NaN or infinite.
        """
        refuse_pixels(pixels)
        ids = self.tokenizer.to(pixels.device).encode(pixels)
        return F.normalize(self.encode_ids(ids).pooled.float(), dim=-1)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Return unit features (T, E), float32, of texts. No gradient."""
        return self.text.features(texts)


def load_unitok_clip(weights: Weights, config: UniTokCLIPConfig | None = None) -> UniTokCLIP:
    """Return UniTok with its text tower, frozen.

    The weights are memory-mapped, so the file must not change.

    Args:
        weights: as for :func:`toklip_vq.published.load_unitok`.
        config: sizes; None: the published ones.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or does not fit.
    """
    config = config or UniTokCLIPConfig()
    tensors = read_unitok(weights)
    tokenizer = Tokenizer("unitok", load_unitok(tensors, config.unitok), weights)
    with without_values():
        clip = UniTokCLIP(config, tokenizer)
    load_strict(clip, tensors, source=weights, name_in_file=_name_in_file, ignored=_IGNORED, mapped=True)
    return clip.requires_grad_(False).eval()


def _name_in_file(name: str) -> str:
    return name.replace("text.network.", "text_encoder.", 1)
