"""Attention by matrix products, for training in bfloat16 on a CPU.

The backward pass of torch's fused attention takes five times as long there: in a step of 256 pictures of 64 tokens with
5 heads of 32, attention takes 150 ms a block, and 25 ms by products (AVX-512 with BF16, 2 cores, torch 2.15).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

#: Largest number of keys. All scores are in memory, so longer rows are left to the fused attention.
MOST_KEYS = 512


class CPUAttention(TorchFunctionMode):
    """A context in which short attention that learns, under a CPU's autocast, is computed by products.

    >>> q = torch.randn(1, 2, 6, 8)
    >>> with CPUAttention(), torch.autocast("cpu", torch.bfloat16):
    ...     F.scaled_dot_product_attention(q, q, q, is_causal=True).dtype
    torch.bfloat16
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the function returns
        if func is F.scaled_dot_product_attention and _is_meant(*args, **(kwargs or {})):
            return attention_by_products(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def attention_by_products(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return what ``torch.nn.functional.scaled_dot_product_attention`` does, but for rounding."""
    if enable_gqa:
        times = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(times, -3), value.repeat_interleave(times, -3)
    scores = (query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)) @ key.transpose(-1, -2)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        # A number, because a row of minus infinities has no softmax; padding may have such rows.
        scores = scores.masked_fill(~attn_mask, torch.finfo(scores.dtype).min)
    elif attn_mask is not None:
        scores = scores + attn_mask.to(scores.dtype)
    return F.dropout(scores.softmax(-1), dropout_p) @ value


def _is_meant(query: Tensor, key: Tensor, value: Tensor, *args: object, **kwargs: object) -> bool:
    return (
        query.device.type == "cpu"
        and key.shape[-2] <= MOST_KEYS
        and torch.is_grad_enabled()
        and torch.is_autocast_enabled("cpu")
    )
