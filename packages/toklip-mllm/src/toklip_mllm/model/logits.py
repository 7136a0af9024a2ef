"""What ``generate`` looks at before a token is chosen."""

from __future__ import annotations

from toklip_core.finite import refuse_not_finite
from torch import LongTensor, Tensor
from transformers import LogitsProcessor


class FiniteLogits(LogitsProcessor):  # type: ignore[misc]
    """Raises ValueError, naming the row, where no token can be chosen: greedily the answer would be made up.

    -inf rules a token out and is no fault, unless all are.
    """

    def __call__(self, input_ids: LongTensor, scores: Tensor) -> Tensor:
        """Return the scores (B, V), as they are."""
        refuse_not_finite(scores.amax(-1), "the greatest logit", "row")
        return scores
