"""Outputs of a model that reads and draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast


@dataclass
class ReadAndDrawOutput(CausalLMOutputWithPast):  # type: ignore[misc]
    """Output of the language model, and of the image head for the pictures that the assistant draws.

    ``loss`` is the sum of the loss of the text and of ``image_loss``.
    """

    #: Mean cross entropy of the levels of the drawn pictures.
    image_loss: Tensor | None = None
    #: (P', N, K_q), float32, logits of each level of the P' pictures that are drawn.
    image_logits: tuple[Tensor, ...] | None = None


@dataclass(frozen=True)
class PictureOutput:
    """Drawn pictures, one for each of B prompts, and all that a next turn needs."""

    #: (B, h, w, Q), int64.
    image_ids: Tensor
    #: (B, L + N), the prompt, and the image token N times.
    sequences: Tensor
    #: (B, L + N), 0 where a prompt is padded; with ``read_last=False`` the cache does not hold the last position yet.
    attention_mask: Tensor
    #: (B, N, D), the pictures in the language model's embedding space, as ``get_image_features`` returns them.
    image_features: Tensor
    #: Cache of the language model, which holds prompt and picture.
    cache: Any
    #: Number of calls of the language model in which the pictures were drawn.
    calls: int
    #: Width of the window; that of "auto" is the fastest that was tried in full, 1 before any was.
    window: int
