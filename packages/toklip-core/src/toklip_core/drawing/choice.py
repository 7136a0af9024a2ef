"""Choice of ids by their logits: temperature, top-k, top-p, and one random number per id.

Letters: B pictures, K ids.
"""

from __future__ import annotations

import torch
from torch import Tensor

from toklip_core.config import LEAST_TEMPERATURE
from toklip_core.drawing.settings import Drawing


def choose_ids(logits: Tensor, luck: Tensor, drawing: Drawing) -> Tensor:
    """Choose ids (B,), int64, by logits (B, K) and numbers (B,) that are uniform in [0, 1).

    An id is the first at which the cumulative probability, in the order of the codebook, exceeds its number. So each id
    needs one number, which does not depend on the rest of the batch.
    """
    if drawing.temperature < LEAST_TEMPERATURE:
        return logits.argmax(-1)
    logits = (logits - logits.amax(-1, keepdim=True)) / drawing.temperature
    if drawing.top_k and drawing.top_k < logits.shape[-1]:
        least = logits.topk(drawing.top_k, sorted=False).values.amin(-1, keepdim=True)
        logits = logits.masked_fill(logits < least, -torch.inf)
    if drawing.top_p < 1:
        # Ids before which the likelier ones have less than top_p in all; the likeliest id is always one of them.
        ordered = logits.sort(descending=True).values
        shares = ordered.softmax(-1)
        kept = shares.cumsum(-1) - shares < drawing.top_p
        logits = logits.masked_fill(logits < ordered.masked_fill(~kept, torch.inf).amin(-1, keepdim=True), -torch.inf)
    passed = logits.softmax(-1).cumsum(-1)
    total = passed[:, -1]
    goal = torch.minimum(luck * total, torch.nextafter(total, torch.zeros_like(total)))
    # NaN gives no valid index, but the next step reads the id before NaN is reported.
    return torch.searchsorted(passed, goal[:, None], right=True)[:, 0].clamp_max(logits.shape[-1] - 1)
