"""A check of the logits in ``generate``."""

from __future__ import annotations

from toklip_core.weights import refuse_not_finite
from torch import LongTensor, Tensor
from transformers import LogitsProcessor


class FiniteLogits(LogitsProcessor):  # type: ignore[misc]
    """Processor of logits that raises ValueError, with the row, if no token can be chosen from them.

    Greedy search would silently choose some token. -inf excludes a token and is allowed unless all logits are -inf.
    """

    def __call__(self, input_ids: LongTensor, scores: Tensor) -> Tensor:
        """Return the scores (B, V) unchanged."""
        refuse_not_finite(scores.amax(-1), "the greatest logit", "row")
        return scores
