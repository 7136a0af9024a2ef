"""Building blocks of the generator: its embeddings, its block, the rotary embedding, and the mask of a condition.

Shape letters: R rows, n positions of now, T of the condition, N = h w of the grid, W width, H heads, d = W / H, Q ids
of a position.
"""

from __future__ import annotations

from itertools import accumulate

import torch
import torch.nn.functional as F
from toklip_core.drawing import IdLevels
from toklip_core.model import Attend
from torch import Tensor, nn

from toklip_gen.generator.config import GeneratorConfig, TextCondition


class TextEmbedding(nn.Module):
    """Embedding of features of texts (R, T, width) to (R, T, W), with features that stand for no text.

    Args:
        config: length T, width, and number of neighbours that are read with each word; beyond the text they are 0.
        out: width W.
    """

    nothing: Tensor

    def __init__(self, config: TextCondition, out: int) -> None:
        super().__init__()
        length, width, self._neighbours = config.length, config.width, config.neighbours
        # A buffer, because LlamaGen does not train it either; its scale is that of a unit vector.
        self.register_buffer("nothing", torch.empty(length, width).normal_().div_(width**0.5))
        self.fc1 = nn.Linear(width * (2 * self._neighbours + 1), out, bias=False)
        self.fc2 = nn.Linear(out, out, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return embeddings (R, T, W) of features (R, T, width)."""
        features = features.to(self.nothing.dtype)
        if n := self._neighbours:
            features = F.pad(features, (0, 0, n, n)).unfold(1, 2 * n + 1, 1).flatten(2)
        hidden = self.fc1(features)
        return self.fc2(F.gelu(hidden, approximate="tanh"))  # type: ignore[no-any-return]


class IdEmbedding(nn.Embedding):
    """Embedding of the ids (..., Q) of positions to (..., W): the sum of a row for each level.

    The tables of the levels are one weight, one after another.
    """

    def __init__(self, levels: IdLevels, out: int) -> None:
        super().__init__(sum(levels.sizes), out)
        self._levels = levels
        self._starts = [0, *accumulate(levels.sizes)][:-1]

    def forward(self, ids: Tensor) -> Tensor:
        """Return embeddings (..., W) of ids (..., Q)."""
        levels = self._levels.split(ids).unbind(-1)
        rows = torch.stack([level + start for level, start in zip(levels, self._starts, strict=True)], dim=-1)
        return super().forward(rows).sum(-2)


class Block(nn.Module):
    """Transformer block: attention and SwiGLU, each with a norm before it and a residual connection."""

    def __init__(self, config: GeneratorConfig, dropout: float) -> None:
        super().__init__()
        width, self.head_width = config.width, config.width // config.heads
        self.heads, self.kv_heads = config.heads, config.kv_heads or config.heads
        self.norm1 = nn.RMSNorm(width, eps=config.norm_eps)
        self.qkv = nn.Linear(width, (self.heads + 2 * self.kv_heads) * self.head_width, bias=False)
        #: The norms of queries and of keys, if the generator has them.
        self.qk_norms = nn.ModuleList(
            nn.RMSNorm(self.head_width, eps=config.norm_eps) for _ in range(2 if config.qk_norm else 0)
        )
        self.proj = nn.Linear(width, width, bias=False)
        self.norm2 = nn.RMSNorm(width, eps=config.norm_eps)
        self.gate_up = nn.Linear(width, 2 * config.mlp_width, bias=False)
        self.down = nn.Linear(config.mlp_width, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """Return the block's output (R, n, W) for x (R, n, W).

        cos and sin are (n, d). attend takes q, k and v, each (R, H, n, d).
        """
        qkv = self.qkv(self.norm1(x)).view(*x.shape[:2], -1, self.head_width)
        qk = qkv[:, :, : -self.kv_heads].transpose(1, 2)
        if self.qk_norms:
            parts = qk.split((self.heads, self.kv_heads), dim=1)
            qk = torch.cat([norm(part) for norm, part in zip(self.qk_norms, parts, strict=True)], dim=1)
        qk = rotate_pairs(qk, cos, sin)
        q, k, v = qk[:, : self.heads], qk[:, self.heads :], qkv[:, :, -self.kv_heads :].transpose(1, 2)
        x = x + self.dropout(self.proj(attend(q, k, v).transpose(1, 2).flatten(2)))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.dropout(self.down(F.silu(gate) * up))  # type: ignore[no-any-return]


def rotation(config: GeneratorConfig) -> tuple[Tensor, Tensor]:
    """Return cosines and sines, (T + N, d) each, for :func:`rotate_pairs`.

    The first half of the pairs rotates with the row, the second half with the column; words rotate by their place. In
    LlamaGen both are 0 at the positions of the condition instead of 1 and 0, so it has neither queries nor keys there,
    and every id attends to them equally; see ``condition_keys``.

    Source: precompute_freqs_cis_2d of FoundationVision/LlamaGen.
    """
    width = config.width // config.heads
    half = width // 2
    with torch.device("cpu"):
        speeds = 1.0 / config.rope_base ** (torch.arange(0, half, 2)[: half // 2].float() / half)
        rows, columns = (torch.outer(torch.arange(side), speeds) for side in config.grid)
        h, w = config.grid
        angles = torch.cat([rows[:, None].expand(h, w, -1), columns[None].expand(h, w, -1)], dim=-1).flatten(0, 1)
        # A word is as far before the first row and column as it is from the end of the text.
        places = torch.arange(-config.condition.length, 0)
        angles = torch.cat([torch.outer(places, speeds).repeat(1, 2), angles]).repeat_interleave(2, dim=-1)
        signs = torch.tensor([-1.0, 1.0]).repeat(half)
        cos, sin = angles.cos(), angles.sin() * signs
        if config.condition_keys != "rotated":
            cos[: len(places)] = sin[: len(places)] = 0
        return cos, sin


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x (R, H, n, d) with the pairs of its last axis rotated, computed in float32.

    A pair (a, b) becomes (a cos - b sin, b cos + a sin).
    """
    swapped = x.view(*x.shape[:-1], -1, 2).flip(-1).view(x.shape)
    return torch.addcmul(x * cos, swapped, sin).to(x.dtype)


def prefix_mask(mask: Tensor, length: int) -> Tensor:
    """Return the causal mask (R, 1, length, length), bool, for the mask (R, T) of a condition.

    Only padding attends to padding.

    Source: emb_masks in generate.py, and dataset/t2i.py, of FoundationVision/LlamaGen.
    """
    seen = F.pad(mask, (0, length - mask.shape[1]), value=True)[:, None, None]
    square = torch.ones(length, length, dtype=torch.bool, device=mask.device)
    return (square.tril() & seen) | square.diag().diag()
