"""Inputs of a generator at each position: ids, codes, or codes with their semantic tokens.

    ids     ids (Q)                                the generator has tables of its own
    codes   embed(ids)                             (C)
    concat  [embed(ids) ; token]                   (C + D), the token of the causal encoder at this position

Training uses whole pictures. Drawing uses a stream, in which the semantic encoder has its own cache and computes the
positions as they come.

Shape letters: B pictures, h and w grid, N = h w, n positions so far, Q ids of a position, C codebook dim, D width of
the encoder, F = C or C + D.
"""

from __future__ import annotations

import torch
from toklip_core.model import FeatureStream, SemanticEncoder, TokLIP, join_features
from toklip_core.tokenizer import Tokenizer
from toklip_core.weights import weights_checksum
from torch import Tensor, nn

from toklip_gen.generator.config import Features, GeneratorConfig
from toklip_gen.generator.packed_linear import pack_linears


class Inputs:
    """Converter of ids to the inputs of a generator.

    Args:
        features: kind of inputs, as in the generator's config.
        tokenizer: VQ tokenizer, for codes and concat.
        encoder: semantic encoder in evaluation mode, for concat.

    Raises:
        ValueError: ``features`` needs a tokenizer or an encoder and there is none, their widths do not fit, or the
            encoder is not causal.

    >>> ids = torch.zeros(1, 2, 3, 4, dtype=torch.int64)
    >>> Inputs("ids")(ids).shape
    torch.Size([1, 6, 4])
    """

    def __init__(
        self, features: Features, *, tokenizer: Tokenizer | None = None, encoder: SemanticEncoder | None = None
    ) -> None:
        if features != "ids" and tokenizer is None:
            raise ValueError(f"features = {features!r} needs the VQ tokenizer, for its codebook; got none")
        if features == "concat" and encoder is None:
            raise ValueError("features = 'concat' needs the semantic encoder of a TokLIP; got none")
        self.features = features
        self.tokenizer = tokenizer if features != "ids" else None
        self.encoder = encoder if features == "concat" else None
        if self.encoder is not None:
            self.encoder.refuse_steps()
        if self.tokenizer and self.encoder and self.tokenizer.codebook_dim != self.encoder.config.codebook_dim:
            raise ValueError(
                f"the tokenizer has codes of width {self.tokenizer.codebook_dim}, and the encoder takes "
                f"{self.encoder.config.codebook_dim}; they belong to different models"
            )

    @property
    def width(self) -> int | None:
        """Width F of the inputs, the ``feature_width`` of the config; None with ids."""
        if self.tokenizer is None:
            return None
        return self.tokenizer.codebook_dim + (self.encoder.config.trunk.width if self.encoder else 0)

    @torch.no_grad()
    def __call__(self, ids: Tensor) -> Tensor:
        """Return the inputs (B, N, Q) or (B, N, F) for the ids (B, h, w, Q) of whole pictures, without gradient.

        Position i depends only on the ids of positions 0 to i.

        Raises:
            ValueError: the encoder has another grid.
        """
        if self.tokenizer is None:
            return ids.flatten(1, 2)
        codes = self.tokenizer.to(ids.device).embed(ids)
        if self.encoder is None:
            return codes.flatten(1, 2)
        return join_features("concat", codes.flatten(1, 2), self.encoder(codes).tokens)

    @torch.no_grad()
    def stream(self, ids: Tensor) -> tuple[Tensor, Stream]:
        """Return the inputs of the first n >= 0 positions, and a stream for those that follow.

        For ids (B, n, Q) they are (B, n, Q) or (B, n, F).
        """
        if self.features == "ids" or self.tokenizer is None:
            return ids, Stream()
        embedding = self.tokenizer.to(ids.device).embedding
        read, stream = FeatureStream.begin(ids, self.features, embedding=embedding, encoder=self.encoder)
        return read, Stream(stream)


class Stream:
    """Inputs of pictures that are being drawn, a few positions at a time: ids, or a stream of features of them."""

    def __init__(self, features: FeatureStream | None = None) -> None:
        self._features = features

    def step(self, ids: Tensor) -> Tensor:
        """Return the inputs (B, n, Q) or (B, n, F) for the ids (B, n, Q) of the next n positions."""
        return ids if self._features is None else self._features.step(ids)

    def step_at(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Return the inputs of :meth:`step` for the ids at positions (n,), for ``torch.compile``."""
        return ids if self._features is None else self._features.step_at(ids, positions)

    def cut(self, positions: int) -> None:
        """Forget all positions but the first ``positions``."""
        if self._features is not None:
            self._features.cut(positions)

    def caches(self) -> list[Tensor]:
        """Return the tensors of the cache, which stay in the same memory."""
        return [] if self._features is None else self._features.caches()

    def pack_linears(self) -> Stream:
        """Return the stream with the encoder's weights packed by :func:`toklip_gen.generator.pack_linears`."""
        if self._features is None or self._features.encoder is None:
            return self
        return Stream(self._features.with_encoder(pack_linears(self._features.encoder)))


def toklip_checksum(toklip: TokLIP, config: GeneratorConfig) -> str:
    """Return the SHA-256 of the towers of a TokLIP that a generator uses, for ``toklip_checksum`` in its config.

    Raises:
        ValueError: the text tower is needed, and the TokLIP was loaded without it.
    """
    towers: dict[str, nn.Module] = {}
    if config.features == "concat":
        towers["encoder"] = toklip.encoder
    if config.reads_tower:
        if toklip.text is None:
            raise ValueError("the generator reads the TokLIP's text tower; load it with text=True")
        towers["text"] = toklip.text
    return weights_checksum(nn.ModuleDict(towers))
