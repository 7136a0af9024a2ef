"""The image head: from the states of a language model to logits of the ids of a picture, level by level.

Shape letters: D width of the language model, L levels, q levels so far, K_q size of level q.

Source: a head of its own for pictures, Janus, https://arxiv.org/abs/2410.13848; a transformer over the levels of a
position, VILA-U, https://arxiv.org/abs/2409.04429, and UniTok, https://arxiv.org/abs/2502.20321.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from toklip_core.model import LevelTransformer, TrunkConfig, sample_ids
from torch import Tensor, nn

from toklip_mllm.model.head_config import ImageHeadConfig


class ImageHead(nn.Module):
    """Predicts the levels of a position: by one linear layer, or by a small transformer where levels are residual.

    The last weights are zero at first, as in LlamaGen, so every id is equally likely.

    Args:
        config: levels and sizes.
        width: width D of the states.

    >>> head = ImageHead(ImageHeadConfig(begin_token_id=9, levels=(16, 8), guidance=1, top_k=0), width=32)
    >>> states = torch.randn(5, 32)
    >>> [tuple(logits.shape) for logits in head(states, torch.zeros(5, 2, dtype=torch.int64))]
    [(5, 16), (5, 8)]
    """

    def __init__(self, config: ImageHeadConfig, width: int) -> None:
        super().__init__()
        self.sizes = config.levels
        if config.level_width and config.level_heads:
            # Source of the epsilon and the activation: VILA-U's depth transformer.
            trunk = TrunkConfig(
                width=config.level_width,
                depth=config.level_blocks,
                heads=config.level_heads,
                activation="gelu",
                norm_eps=1e-5,
            )
            self.predict: nn.Module = LevelTransformer(config.levels, state_width=width, config=trunk)
            last = list(self.predict.heads)
        else:
            self.predict = nn.Linear(width, sum(config.levels), bias=False)
            last = [self.predict]
        for layer in last:
            nn.init.zeros_(cast(nn.Linear, layer).weight)

    def forward(self, states: Tensor, levels: Tensor | None) -> tuple[Tensor, ...]:
        """Return the logits (..., K_q), float32, of each level, for states (..., D) and all levels (..., L).

        The logits of a level depend on the state and, with a transformer, on the levels before it. Without levels,
        return L tensors (...) of levels that are sampled from these logits one after another, without gradient.
        """
        if isinstance(self.predict, LevelTransformer):
            return self.predict(states, levels)  # type: ignore[no-any-return]
        logits = cast(Tensor, self.predict(states)).float().split(self.sizes, dim=-1)  # type: ignore[no-untyped-call]
        return logits if levels is not None else tuple(map(sample_ids, logits))

    @torch.no_grad()
    def logits(self, states: Tensor, before: Tensor) -> Tensor:
        """Return the logits (R, K_q), float32, of level q for states (R, D) and the levels before it, (R, q).

        No gradient.
        """
        if isinstance(self.predict, LevelTransformer):
            return self.predict.logits(states, before)
        level = before.shape[-1]
        start = sum(self.sizes[:level])
        weight = cast(nn.Linear, self.predict).weight[start : start + self.sizes[level]]
        return F.linear(states, weight).float()
