"""Choice of an id by its logits: temperature, top-k, top-p, and one number of chance for each.

Letters: B pictures, K ids.
"""

from __future__ import annotations

import torch
from torch import Tensor

from toklip_core.config import LEAST_TEMPERATURE
from toklip_core.drawing.settings import Drawing


def choose_ids(logits: Tensor, luck: Tensor, drawing: Drawing) -> Tensor:
    """Choose ids (B,), int64, by logits (B, K) and numbers (B,) that are uniform in [0, 1).

    An id is where the cumulated probability passes the number, in the order of the codebook: one number an id, and none
    that depends on the rest of the batch.
    """
    if drawing.temperature < LEAST_TEMPERATURE:
        return logits.argmax(-1)
    logits = (logits - logits.amax(-1, keepdim=True)) / drawing.temperature
    if drawing.top_k and drawing.top_k < logits.shape[-1]:
        least = logits.topk(drawing.top_k, sorted=False).values.amin(-1, keepdim=True)
        logits = logits.masked_fill(logits < least, -torch.inf)
    if drawing.top_p < 1:
        # The ids before which less than top_p has been passed: the likeliest is always one of them.
        ordered = logits.sort(descending=True).values
        shares = ordered.softmax(-1)
        kept = shares.cumsum(-1) - shares < drawing.top_p
        logits = logits.masked_fill(logits < ordered.masked_fill(~kept, torch.inf).amin(-1, keepdim=True), -torch.inf)
    passed = logits.softmax(-1).cumsum(-1)
    total = passed[:, -1]
    goal = torch.minimum(luck * total, torch.nextafter(total, torch.zeros_like(total)))
    # Among NaN no place is found; an id it must be, for the next step reads it before the marks are looked at.
    return torch.searchsorted(passed, goal[:, None], right=True)[:, 0].clamp_max(logits.shape[-1] - 1)
