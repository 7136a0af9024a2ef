"""Features of pictures that are being drawn: codes, semantic tokens, or both, a few positions at a time.

    codes   embed(ids)             (C)
    tokens  token                  (D), of the causal encoder at this position
    concat  [embed(ids) ; token]   (C + D)

A whole picture gives the same features in one pass; a stream has the encoder's cache and adds positions.

Shape letters: B pictures, n positions so far, Q ids of a position, C codebook dim, D width of the encoder, F = C, D or
C + D.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from torch import Tensor

from toklip_core.embeddings import CodeEmbedding
from toklip_core.model.attention import Cache
from toklip_core.model.encoder import SemanticEncoder

#: Features of a position: its code (C wide), its semantic token (D), or both (concat, C + D).
FeatureKind = Literal["concat", "tokens", "codes"]


def join_features(features: FeatureKind, codes: Tensor, tokens: Tensor) -> Tensor:
    """Return tokens (..., D), or codes and tokens (..., C + D) in the tokens' dtype; codes alone need no tokens."""
    if features == "tokens":
        return tokens
    return torch.cat([codes.to(tokens.dtype), tokens], dim=-1)


class FeatureStream:
    """Features of pictures, from :meth:`begin` on a few positions at a time.

    Args:
        features: kind of features.
        embedding: embedding of the ids.
        cached_encoder: causal encoder in evaluation mode and its cache, for tokens and concat.

    >>> from toklip_core.model import load_model
    >>> toklip = load_model("toklip-tiny")
    >>> ids = torch.zeros(1, 64, 4, dtype=torch.int64)
    >>> features, stream = FeatureStream.begin(
    ...     ids[:, :5], "concat", embedding=toklip.tokenizer.embedding, encoder=toklip.encoder
    ... )
    >>> tuple(features.shape), tuple(stream.step(ids[:, 5:7]).shape)
    ((1, 5, 168), (1, 2, 168))
    """

    def __init__(
        self,
        features: FeatureKind,
        embedding: CodeEmbedding,
        cached_encoder: tuple[SemanticEncoder, Cache] | None = None,
    ) -> None:
        self.features = features
        self._embedding, self._cached_encoder = embedding, cached_encoder

    @classmethod
    @torch.no_grad()
    def begin(
        cls, ids: Tensor, features: FeatureKind, *, embedding: CodeEmbedding, encoder: SemanticEncoder | None
    ) -> tuple[Tensor, Self]:
        """Return the features (B, n, F) of the first n >= 0 positions, and a stream for those that follow. No gradient.

        Args:
            ids: (B, n, Q), int64.
            features: kind of features.
            embedding: embedding of the ids.
            encoder: causal encoder, for tokens and concat; codes do not use it.

        Raises:
            ValueError: tokens or concat have no encoder, it is not causal, or there are more positions than its grid
                has.
        """
        codes = embedding(ids)
        if features == "codes":
            return codes, cls(features, embedding)
        if encoder is None:
            raise ValueError(f"got the features {features!r} and no encoder; pass the semantic encoder of a TokLIP")
        tokens, cache = encoder.prefill(codes)
        return join_features(features, codes, tokens), cls(features, embedding, (encoder, cache))

    @torch.no_grad()
    def step(self, ids: Tensor) -> Tensor:
        """Return the features (B, n, F) of the ids (B, n, Q) of the next n positions. No gradient."""
        codes: Tensor = self._embedding(ids)
        if self._cached_encoder is None:
            return codes
        encoder, cache = self._cached_encoder
        return join_features(self.features, codes, encoder.step(codes, cache))

    def step_at(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Return the features of :meth:`step` for the ids at positions (n,), int64, for ``torch.compile``."""
        codes: Tensor = self._embedding(ids)
        if self._cached_encoder is None:
            return codes
        encoder, cache = self._cached_encoder
        return join_features(self.features, codes, encoder.step_at(codes, cache, positions))

    def cut(self, positions: int) -> None:
        """Forget all positions but the first ``positions``."""
        if self._cached_encoder is not None:
            self._cached_encoder[1].cut(positions)

    def caches(self) -> list[Tensor]:
        """Return the tensors of the cache, which stay in the same memory."""
        if self._cached_encoder is None:
            return []
        return self._cached_encoder[1].tensors()

    @property
    def encoder(self) -> SemanticEncoder | None:
        """Encoder of the tokens; None with codes."""
        return None if self._cached_encoder is None else self._cached_encoder[0]

    def with_encoder(self, encoder: SemanticEncoder) -> FeatureStream:
        """Return the stream with an equal encoder in place of its own, such as one with packed weights."""
        assert self._cached_encoder is not None
        return FeatureStream(self.features, self._embedding, (encoder, self._cached_encoder[1]))
