"""The generator: a transformer that predicts the ids of the next position from a condition and n positions.

    condition -> T positions -+
    inputs ----> n positions -+-> causal blocks (RMS norm, 2-D rotary embedding, SwiGLU) -> norm -> head -> logits

The head is one linear layer for all levels of the ids, or a small transformer over them.

It reads the inputs of inputs.py, which are ids, codes, or codes with semantic tokens. VQ tokenizer, semantic encoder
and text encoder are not part of it.

Shape letters: B pictures, R rows of the cache (one or two of each picture), T positions of the condition, n inputs,
N = h w positions of the grid, W width, H heads, d = W / H, Q ids of a position, L levels of them, K_q size of level q,
S width of a state, F width of an input.

Source: Sun et al., LlamaGen, https://arxiv.org/abs/2406.06525, whose published weights fit
(:mod:`toklip_gen.generator.llamagen`).
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from toklip_core.model import (
    Attend,
    Cache,
    LevelTransformer,
    TrunkConfig,
    attend,
    attend_at,
    attend_causally,
    attend_with_cache,
    sample_ids,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from toklip_gen.generator.blocks import Block, IdEmbedding, TextEmbedding, prefix_mask, rotation
from toklip_gen.generator.config import GeneratorConfig


class Condition(NamedTuple):
    """Condition of B pictures: their classes, or the features of their texts."""

    #: Classes (B,), int64, where the number of classes stands for none; or features of texts (B, T, width).
    values: Tensor
    #: (B, T), bool, False where a text is padded; padding is never attended to. None: no padding.
    mask: Tensor | None = None

    def to(self, device: torch.device | str) -> Condition:
        """Return the condition on a device."""
        return Condition(self.values.to(device), None if self.mask is None else self.mask.to(device))


class Generator(nn.Module):
    """Autoregressive transformer over ids, with the embeddings of its condition and inputs.

    It is initialised as LlamaGen: normal weights with standard deviation 0.02, and a head of zeros.

    Args:
        config: sizes of the transformer.
        dropout: dropout in training, after the embeddings and after both halves of every block.

    >>> from toklip_gen.generator.config import ClassCondition
    >>> config = GeneratorConfig(
    ...     tokenizer={"name": "ibq-1024"}, codebook_sizes=(1024,), image_size=(32, 32), grid=(4, 4), width=64,
    ...     depth=2, heads=4, condition=ClassCondition(classes=10),
    ... )
    >>> generator = Generator(config).eval()
    >>> ids = torch.zeros(2, 16, 1, dtype=torch.int64)
    >>> (logits,) = generator(ids[:, :-1], generator.levels.split(ids), Condition(torch.tensor([3, 7])))
    >>> logits.shape
    torch.Size([2, 16, 1024])
    """

    def __init__(self, config: GeneratorConfig, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.levels = config.id_levels
        #: Recompute the activations of each block in the backward pass instead of storing them, in training only.
        self.grad_checkpointing = False
        width = config.width
        if config.condition.kind == "class":
            self.condition: nn.Module = nn.Embedding(config.condition.classes + 1, width)
        else:
            self.condition = TextEmbedding(config.condition, width)
        if config.feature_width is None:
            self.input: nn.Module = IdEmbedding(self.levels, width)
        else:
            self.input = nn.Sequential(nn.Linear(config.feature_width, width), nn.GELU(), nn.Linear(width, width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(config, dropout) for _ in range(config.depth))
        self.norm = nn.RMSNorm(width, eps=config.norm_eps)
        if config.level_blocks:
            # Source of the epsilon and the activation: VILA-U's depth transformer.
            trunk = TrunkConfig(
                width=width, depth=config.level_blocks, heads=config.heads, activation="gelu", norm_eps=1e-5
            )
            self.head: nn.Module = LevelTransformer(self.levels.sizes, state_width=width, config=trunk)
        else:
            self.head = nn.Linear(width, sum(self.levels.sizes), bias=False)
        self._rotation = rotation(config)
        self.apply(_initialize)
        if config.qk_norm:  # as large as what attention adds; see docs/decisions/learning-to-compare.md
            with torch.no_grad():
                for weight in self._embedding_weights():
                    weight.mul_(width**0.5)
        for head in self.head.heads if isinstance(self.head, LevelTransformer) else [self.head]:
            nn.init.zeros_(cast(nn.Linear, head).weight)

    def _embedding_weights(self) -> list[Tensor]:
        """Return the weights that inputs and conditions come out of."""
        condition, inputs = self.condition, self.input
        return [
            cast(Tensor, condition.fc2.weight if isinstance(condition, TextEmbedding) else condition.weight),
            cast(Tensor, inputs[-1].weight if isinstance(inputs, nn.Sequential) else inputs.weight),
        ]

    def forward(
        self, inputs: Tensor, levels: Tensor | None, condition: Condition, drop: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Return the logits (B, n + 1, K_q), float32, of each level of the ids; or, without levels, sampled levels.

        Those at i predict a level of position i from the condition, inputs 0 to i - 1 and, if the head is a
        transformer over levels, the levels of position i before it. To train, give the inputs of all positions but the
        last, and the levels of all: ``inputs(ids)[:, :-1]`` and ``levels.split(ids.flatten(1, 2))``, n = N - 1.

        Args:
            inputs: ids (B, n, Q), int64, or inputs (B, n, F); n may be 0.
            levels: (B, n + 1, L), int64, levels of the ids that are predicted. None: return L tensors (B, n + 1) of
                levels that are sampled from these logits one after another, without gradient. This is a forward pass,
                too, so that it goes through the hooks of DDP and FSDP.
            condition: condition of each picture.
            drop: (B,), bool, True for pictures to train without condition, for guidance; see :meth:`drop_condition`.

        Raises:
            ValueError: a shape is another, or n is more than the grid has.
        """
        self._refuse_other(inputs, condition)
        count = len(self.levels.sizes)
        if levels is not None and levels.shape != (wanted := (len(inputs), inputs.shape[1] + 1, count)):
            raise ValueError(f"got levels {tuple(levels.shape)} with inputs {tuple(inputs.shape)}; wanted {wanted}")
        if drop is not None:
            condition = self.drop_condition(condition, drop)
        x = self._embedded(inputs, condition)
        cos, sin = (table[: x.shape[1]] for table in self._rotation_on(x.device))
        see: Attend = attend_causally
        if condition.mask is not None:
            see = partial(attend, mask=prefix_mask(condition.mask, x.shape[1]))
        for block in self.blocks:
            if self.grad_checkpointing and self.training:
                x = checkpoint(block, x, cos, sin, see, use_reentrant=False)
            else:
                x = block(x, cos, sin, see)
        x = self.norm(x[:, self.config.condition.length - 1 :])
        if not isinstance(self.head, LevelTransformer):
            logits = self._by_level(self.head(x).float())
            return logits if levels is not None else tuple(map(sample_ids, logits))
        if self.grad_checkpointing and self.training:
            return checkpoint(self.head, x, levels, use_reentrant=False)
        return self.head(x, levels)  # type: ignore[no-any-return]

    def drop_condition(self, condition: Condition, drop: Tensor) -> Condition:
        """Return the condition, replaced by "no condition" where ``drop`` (B,), bool, is True.

        "No class" is the last row of the table. "No text" is T features of its own, still masked like the text.
        """
        if self.config.condition.kind == "class":
            return condition._replace(values=condition.values.masked_fill(drop, self.config.condition.classes))
        nothing = cast(TextEmbedding, self.condition).nothing.to(condition.values.dtype)
        return condition._replace(values=torch.where(drop[:, None, None], nothing, condition.values))

    @torch.no_grad()
    def prefill(self, inputs: Tensor, condition: Condition) -> tuple[Tensor, Cache]:
        """Return the states (R, S) of position n, for :meth:`logits`, and the cache for the steps that follow.

        No gradient.

        Args:
            inputs: inputs (B, n, Q) or (B, n, F) of the first n positions; n may be 0.
            condition: R rows, B or a multiple of it; row r belongs to picture r mod B.

        Raises:
            ValueError: a shape is another, or n is more than the grid has.
        """
        self._refuse_other(inputs, condition)
        config, rows = self.config, len(condition.values)
        x = self._embedded(inputs, condition)
        length, capacity = x.shape[1], config.condition.length + config.positions
        shape = (rows, config.kv_heads or config.heads, capacity, config.width // config.heads)
        cache = Cache.empty(len(self.blocks), shape, x)
        cache.length = length
        mask = None
        if condition.mask is not None:
            cache.visible = F.pad(condition.mask, (0, config.positions), value=True)
            mask = prefix_mask(condition.mask, length)
        cos, sin = (table[:length] for table in self._rotation_on(x.device))
        for block, keys, values in zip(self.blocks, cache.keys, cache.values, strict=True):
            x = block(x, cos, sin, partial(attend_with_cache, keys=keys, values=values, start=0, mask=mask))
        return self._states(x[:, -1]), cache

    @torch.no_grad()
    def step(self, inputs: Tensor, cache: Cache) -> Tensor:
        """Return the states (R, n, S) of the positions after the next n inputs, (B, n, Q) or (B, n, F). No gradient.

        Row r of the cache belongs to picture r mod B; each picture's input is embedded only once.

        Raises:
            ValueError: the cache is full, or the number of its rows is not a multiple of B.
        """
        rows, capacity, count = len(cache.keys[0]), cache.capacity, inputs.shape[1]
        if rows % len(inputs) or cache.length + count > capacity:
            raise ValueError(
                f"got {len(inputs)} inputs for position {cache.length} of a cache of {rows} rows and {capacity} "
                "positions; wanted as many as it has pictures, and a position that it has"
            )
        x = self._read(inputs).repeat(rows // len(inputs), 1, 1)
        start, mask = cache.length, cache.seen(count)
        cache.length += count
        cos, sin = (table[start : cache.length] for table in self._rotation_on(x.device))
        for block, keys, values in zip(self.blocks, cache.keys, cache.values, strict=True):
            x = block(x, cos, sin, partial(attend_with_cache, keys=keys, values=values, start=start, mask=mask))
        return self._states(x)

    @torch.no_grad()
    def step_at(self, inputs: Tensor, cache: Cache, positions: Tensor) -> Tensor:
        """Return the states of :meth:`step` at positions (n,), int64, for ``torch.compile``.

        Shapes are the same at all positions, so a graph can be replayed; attention reads the whole cache.
        """
        x = self._read(inputs).repeat(len(cache.keys[0]) // len(inputs), 1, 1)
        cos, sin = (table[positions] for table in self._rotation_on(x.device))
        seen = cache.seen_at(positions)
        for block, keys, values in zip(self.blocks, cache.keys, cache.values, strict=True):
            x = block(x, cos, sin, partial(attend_at, keys=keys, values=values, positions=positions, seen=seen))
        return self._states(x)

    @torch.no_grad()
    def logits(self, states: Tensor, before: Tensor) -> Tensor:
        """Return the logits (R, K_q), float32, of level q for states (R, S) and the levels before it, (R, q).

        No gradient.
        """
        if isinstance(self.head, LevelTransformer):
            return self.head.logits(states, before)
        return self._by_level(states)[before.shape[-1]]

    def _by_level(self, logits: Tensor) -> tuple[Tensor, ...]:
        return logits.split(self.levels.sizes, dim=-1)  # type: ignore[no-any-return, no-untyped-call]

    def _states(self, x: Tensor) -> Tensor:
        """Return what :meth:`logits` reads: the logits of all levels, or the input of a transformer over them."""
        x = self.norm(x)
        return x if isinstance(self.head, LevelTransformer) else cast(Tensor, self.head(x)).float()

    def _embedded(self, inputs: Tensor, condition: Condition) -> Tensor:
        """Return the embeddings (R, T + n, W) of conditions, each followed by the inputs of its picture."""
        prefix: Tensor = self.condition(condition.values)
        prefix = prefix[:, None] if prefix.ndim == 2 else prefix
        x = self._read(inputs)
        x = torch.cat([prefix, x.repeat(len(prefix) // len(x), 1, 1)], dim=1)
        # Linear layers return half precision under autocast, but the residual stream must have that of the weights.
        return cast(Tensor, self.dropout(x.to(self.norm.weight.dtype)))

    def _read(self, inputs: Tensor) -> Tensor:
        """Return the embeddings (..., W) of inputs (..., Q) or (..., F); codes are float32 whatever the weights are."""
        return self.input(inputs.to(self.norm.weight.dtype) if inputs.is_floating_point() else inputs)  # type: ignore[no-any-return]

    def _rotation_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        # No buffers, because to(bfloat16) would round them, and building on the meta device would lose them.
        if self._rotation[0].device != device:
            self._rotation = (self._rotation[0].to(device), self._rotation[1].to(device))
        return self._rotation

    def _refuse_other(self, inputs: Tensor, condition: Condition) -> None:
        config, kind = self.config, self.config.condition
        width = config.feature_width or len(config.codebook_sizes)
        if inputs.ndim != 3 or inputs.shape[2] != width or inputs.shape[1] > config.positions:
            wanted = f"(B, n <= {config.positions}, {width}), of features = {config.features!r}"
            raise ValueError(f"got inputs {tuple(inputs.shape)}; wanted {wanted}")
        values, mask = condition
        shape = () if kind.kind == "class" else (kind.length, kind.width)
        if values.shape[1:] != shape or len(values) % max(1, len(inputs)) or not len(inputs):
            wanted = ", ".join([str(len(inputs)), *map(str, shape)])
            raise ValueError(f"got the condition {tuple(values.shape)}; wanted ({wanted}), a {kind.kind} a picture")
        if mask is not None and mask.shape != (len(values), kind.length):
            raise ValueError(f"got the mask {tuple(mask.shape)}; wanted ({len(values)}, {kind.length})")


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
