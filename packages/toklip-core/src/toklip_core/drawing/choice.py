"""Choice of ids by their logits: temperature, top-k, top-p, and random numbers that are drawn beforehand.

Shape letters: B pictures, K ids.
"""

from __future__ import annotations

import torch
from torch import Tensor

from toklip_core.config import LEAST_TEMPERATURE
from toklip_core.drawing.settings import Drawing


def choose_ids(logits: Tensor, noise: Tensor, drawing: Drawing) -> Tensor:
    """Choose ids (B,), int64, by logits (B, K) and random numbers, which do not depend on the rest of the batch.

    With uniform noise there is one number in [0, 1) for each id: an id is the first at which the cumulative
    probability, in the order of the codebook, exceeds its number. With Gumbel noise there is one for each id of the
    codebook, and the id with the greatest sum of logit and number is chosen.

    Args:
        logits: (B, K).
        noise: (B,) uniform, or (B, K) of Gumbel's distribution, as ``drawing.noise`` says.
        drawing: settings, with top_k completed.
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
    if drawing.noise == "gumbel":
        return (logits + noise).argmax(-1)
    passed = logits.softmax(-1).cumsum(-1)
    total = passed[:, -1]
    goal = torch.minimum(noise * total, torch.nextafter(total, torch.zeros_like(total)))
    # NaN gives no valid index, but the next step reads the id before NaN is reported.
    return torch.searchsorted(passed, goal[:, None], right=True)[:, 0].clamp_max(logits.shape[-1] - 1)
