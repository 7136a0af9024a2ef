"""A small transformer over the levels of a position, for models that predict residual ids.

    state of a model -> place 0 -+
    levels 0 to q-1  -> place q -+-> causal blocks -> norm -> a head for each level -> logits

A residual level refines the sum of the levels before it, so it can only be predicted after them.

Shape letters: S width of a state, L levels, q levels so far, K_q size of level q, W width.

Source: RQ-Transformer, https://arxiv.org/abs/2203.01941, and the depth transformer of VILA-U,
https://arxiv.org/abs/2409.04429. They read the sum of the codes so far; this one has a table for each level, so that it
needs no tokenizer, and its levels can also be groups of bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from toklip_core.model.trunk import TrunkConfig, build_blocks

#: Number of positions that the blocks read at once; CUDA's attention kernels take up to 65,535 sequences.
#: Source: https://github.com/pytorch/pytorch/issues/142228.
_AT_ONCE = 2**15


@torch.no_grad()
def sample_ids(logits: Tensor) -> Tensor:
    """Return ids (...), int64, sampled from logits (..., K) with the random numbers of torch's global generator.

    Logits that are not numbers give some id, so that a training can report its loss. Nothing is read back from a GPU.

    >>> sample_ids(torch.tensor([[0.0, 99.0], [99.0, 0.0]]))
    tensor([1, 0])
    """
    # The largest of the logits with Gumbel noise has the chances of the logits: https://arxiv.org/abs/1411.0030.
    logits = logits.float()
    return (logits - torch.empty_like(logits).exponential_().log()).argmax(-1)


class LevelTransformer(nn.Module):
    """Predicts the levels of a position one after another, from the state of a model and the levels before.

    Args:
        sizes: size K_q of each level.
        state_width: width S of the states.
        config: width, number of blocks and heads.

    >>> from toklip_core.model import TrunkConfig
    >>> levels = LevelTransformer((16, 16, 8), state_width=32, config=TrunkConfig(width=32, depth=1, heads=2))
    >>> states, chosen = torch.randn(5, 32), torch.randint(8, (5, 3))
    >>> [tuple(logits.shape) for logits in levels(states, chosen)]
    [(5, 16), (5, 16), (5, 8)]
    >>> torch.allclose(levels.logits(states, chosen[:, :2]), levels(states, chosen)[2], atol=1e-5)
    True
    """

    def __init__(self, sizes: Sequence[int], *, state_width: int, config: TrunkConfig) -> None:
        super().__init__()
        self.project = nn.Linear(state_width, config.width)
        self.tables = nn.ModuleList(nn.Embedding(size, config.width) for size in sizes[:-1])
        self.pos_embed = nn.Parameter(torch.empty(len(sizes), config.width))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.blocks = build_blocks(config)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.heads = nn.ModuleList(nn.Linear(config.width, size, bias=False) for size in sizes)

    def forward(self, states: Tensor, levels: Tensor | None) -> tuple[Tensor, ...]:
        """Return the logits (..., K_q), float32, of each level, for states (..., S) and all levels (..., L).

        The logits of a level depend on the state and on the levels before it. Without levels, return L tensors (...) of
        levels that are sampled from these logits one after another, without gradient.
        """
        if levels is None:
            return self._sampled(states)
        places = self._places(states, levels[..., :-1])
        return tuple(head(places[..., level, :]).float() for level, head in enumerate(self.heads))

    def logits(self, states: Tensor, before: Tensor) -> Tensor:
        """Return the logits (..., K_q), float32, of level q, for states (..., S) and the levels before, (..., q)."""
        head = self.heads[before.shape[-1]]
        return head(self._places(states, before)[..., -1, :]).float()  # type: ignore[no-any-return]

    @torch.no_grad()
    def _sampled(self, states: Tensor) -> tuple[Tensor, ...]:
        before = states.new_zeros(*states.shape[:-1], 0, dtype=torch.int64)
        for _ in self.heads:
            before = torch.cat([before, sample_ids(self.logits(states, before))[..., None]], dim=-1)
        return before.unbind(-1)

    def _places(self, states: Tensor, before: Tensor) -> Tensor:
        """Return the outputs (..., q + 1, W) of the blocks for states (..., S) and levels (..., q)."""
        places = [self.project(states)]
        total = torch.zeros_like(places[0])
        for level, ids in enumerate(before.unbind(-1)):
            total = total + self.tables[level](ids)
            places.append(total)
        # Linear layers return half precision under autocast, but the residual stream must have that of the weights.
        x = torch.stack([place.to(self.pos_embed.dtype) for place in places], dim=-2)
        shape = x.shape
        positions = (x + self.pos_embed[: shape[-2]]).reshape(-1, *shape[-2:])
        read = []
        for x in torch.split(positions, _AT_ONCE):
            for block in self.blocks:
                x = block(x, is_causal=True)
            read.append(x)
        return self.norm(torch.cat(read)).view(shape)  # type: ignore[no-any-return]
