"""The semantic encoder of TokLIP, from codes to causal semantic tokens.

Shape letters: B batch, h and w grid, N = h w tokens in raster order, C codebook dim, D model width, E joint space,
H heads, d = D / H.

    codes (B, h, w, C) -> projector k C -> 4D -> D -> + pos_embed -> causal blocks -> norm -> tokens (B, N, D)
    tokens -> attention pooling, or the class token, which comes last and sees all tokens -> pooled (B, E)

The projector reads the code of a position (k = 1), as in TokLIP, or also the codes of neighbours that come before it.

Token i is a function of codes 0 to i alone, bit for bit, whatever comes after. So a generator that draws ids one by one
can compute each token as soon as it has the id: :meth:`SemanticEncoder.prefill` and :meth:`SemanticEncoder.step`.

The VQ tokenizer is not part of this module. It is frozen and stands outside, so that neither ``train()`` nor DDP nor a
checkpoint ever touches it.

Source: Lin et al., TokLIP, https://arxiv.org/abs/2505.05422.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from toklip_core.config import LARGEST_SIDE, LARGEST_WIDTH, Config
from toklip_core.model.attention import Attend, Cache, attend_at, attend_with_cache
from toklip_core.model.trunk import TrunkConfig, build_attention_pool, build_blocks, described_tower, norm_layer
from toklip_core.weights import without_values

#: Largest ``neighbours``: the projector then reads 145 codes at a time.
MOST_NEIGHBOURS = 8

#: Number of queries that attend at a time; 64 and 192 are equally fast.
_STRIPE = 128

_Side = Annotated[int, Field(gt=0, le=LARGEST_SIDE)]


class EncoderConfig(Config):
    """The sizes of the semantic encoder: the grid of codes, the width of codes, and its transformer (trunk)."""

    codebook_dim: int = Field(
        gt=0, le=LARGEST_WIDTH, description="Codebook dimension C of the tokenizer, the width of a code."
    )
    grid: tuple[_Side, _Side] = Field(description="Rows and columns of codes that the position embedding is sized for.")
    trunk: TrunkConfig = Field(description="Sizes of the transformer.")
    neighbours: int = Field(
        default=0,
        ge=0,
        le=MOST_NEIGHBOURS,
        description="Number of rows up, and of columns to either side, from which the projector reads codes of "
        "neighbours; of its own row it reads only those before. 0, as in TokLIP: the code of the position alone.",
    )
    causal: bool = Field(
        default=True,
        description="Causal attention: each token sees its own code and those before it. false lets each token see all "
        "codes, and then no generator can use the model.",
    )


class Semantics(NamedTuple):
    """Results of the encoder."""

    #: (B, N, D), in raster order, after the last norm. Token i depends on codes 0 to i.
    tokens: Tensor
    #: (B, E), not normalised; depends on all codes.
    pooled: Tensor


class SemanticEncoder(nn.Module):
    """A vision transformer over codes, causal unless the config says otherwise, on timm's blocks.

    The projector has PyTorch's initial values, and everything else has big_vision's. :func:`encoder_from_tower` takes
    the weights of a vision tower instead.

    Args:
        config: sizes of the encoder.

    >>> from toklip_core.model import TrunkConfig
    >>> trunk = TrunkConfig(width=64, depth=2, heads=4)
    >>> encoder = SemanticEncoder(EncoderConfig(codebook_dim=8, grid=(4, 4), trunk=trunk)).eval()
    >>> codes = torch.randn(1, 4, 4, 8)
    >>> tokens, pooled = encoder(codes)
    >>> tokens.shape, pooled.shape
    (torch.Size([1, 16, 64]), torch.Size([1, 64]))

    A generator gets the same tokens one by one:

    >>> first, cache = encoder.prefill(codes[:, 0, :1])
    >>> second = encoder.step(codes[:, 0, 1:2], cache)
    >>> torch.allclose(second, tokens[:, 1:2], atol=1e-5)
    True
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        trunk = config.trunk
        self.config = config
        #: Recompute the activations of each block in the backward pass instead of storing them, in training only.
        self.grad_checkpointing = False
        #: How many rows down and columns to the right each code is that the projector reads; the last is its own.
        self._offsets = neighbour_offsets(config.neighbours)
        read = len(self._offsets) * config.codebook_dim
        self.projector = nn.Sequential(
            nn.Linear(read, 4 * trunk.width), nn.GELU(), nn.Linear(4 * trunk.width, trunk.width)
        )
        last = trunk.pooling == "class_token"
        positions = config.grid[0] * config.grid[1]
        self.pos_embed = nn.Parameter(torch.empty(1, positions + last, trunk.width))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.class_token = nn.Parameter(torch.zeros(1, 1, trunk.width)) if last else None
        self.norm_pre = norm_layer(trunk)(trunk.width) if trunk.pre_norm else nn.Identity()
        self.blocks = build_blocks(trunk)
        self.norm = norm_layer(trunk)(trunk.width)
        self.attn_pool = None if last else build_attention_pool(trunk)
        self.head = nn.Linear(trunk.width, trunk.output_dim) if trunk.output_dim else nn.Identity()

    def forward(self, codes: Tensor) -> Semantics:
        """Return tokens (B, N, D) and pooled (B, E) of codes (B, h, w, C), where h x w is the grid of the config.

        Raises:
            ValueError: the codes have another grid or width.
        """
        self._refuse_other(codes)
        x = self._embedded(codes.flatten(1, 2), 0)
        if self.class_token is not None:
            x = torch.cat([x, (self.class_token + self.pos_embed[:, -1:]).expand(len(x), -1, -1)], dim=1)
        x = self.norm_pre(x)
        causal = self.config.causal
        in_stripes = causal and x.dtype == torch.bfloat16 and x.device.type == "cpu" and not torch.is_grad_enabled()
        for block in self.blocks:
            # Not timm's forward_features, which silently skips checkpointing if is_causal is given, and whose
            # checkpoint_seq drops the mask. All branches here must be the same function of x.
            if in_stripes:
                x = _block(block, x, _attention_in_stripes)
            elif self.grad_checkpointing and self.training:
                x = checkpoint(block, x, is_causal=causal, use_reentrant=False)
            else:
                x = block(x, is_causal=causal)
        x = self.norm(x)
        if self.attn_pool is None:
            return Semantics(x[:, :-1], self.head(x[:, -1]))
        return Semantics(x, self.head(self.attn_pool(x)))

    def pool_each(self, tokens: Tensor) -> Tensor:
        """Return the pooled vectors (B, N, E) of single tokens (B, N, D), which places each token in the joint space.

        A query that sees only one token attends to it fully, so this is the value path of the pooling and all after it.

        Source: the idea is MaskCLIP's, https://arxiv.org/abs/2112.01071, section 3.2.
        """
        if self.attn_pool is None:
            return self.head(tokens)  # type: ignore[no-any-return]
        alone = self.attn_pool(tokens.flatten(0, 1)[:, None])
        return self.head(alone).unflatten(0, tokens.shape[:2])  # type: ignore[no-any-return]

    def prefill(self, codes: Tensor) -> tuple[Tensor, Cache]:
        """Return the tokens (B, n, D) of the first n codes, (B, n, C), and the cache for the steps that follow.

        With n = 0 the cache is empty. No gradient flows through prefill and step. The cache has its full size from the
        start: 2 N D numbers per picture and block, in the dtype of the weights.

        Raises:
            ValueError: the codes have another width, there are more than the grid has, or the encoder is not causal.
        """
        self.refuse_steps()
        if codes.ndim != 3:
            raise ValueError(f"got codes {tuple(codes.shape)}; wanted (B, n, {self.config.codebook_dim}), flat")
        trunk, positions = self.config.trunk, self.config.grid[0] * self.config.grid[1]
        shape = (len(codes), trunk.heads, positions, trunk.width // trunk.heads)
        weight = self.pos_embed.detach()
        cache = Cache.empty(len(self.blocks), shape, weight)
        if self.config.neighbours:
            cache.codes = codes.new_zeros(len(codes), positions, self.config.codebook_dim)
        if codes.shape[1] == 0:
            return weight.new_empty(len(codes), 0, trunk.width), cache
        return self._extended(codes, cache), cache

    def step(self, codes: Tensor, cache: Cache) -> Tensor:
        """Return the tokens (B, n, D) of the next n codes (B, n, C), and add them to the cache.

        Except for attention itself, the cost does not grow with the length of the cache. ``cache.cut`` forgets codes.

        Raises:
            ValueError: the cache is full or of another batch, or the codes have another width.
        """
        if codes.ndim != 3 or len(codes) != len(cache.keys[0]):
            raise ValueError(
                f"got codes {tuple(codes.shape)}; wanted ({len(cache.keys[0])}, n, {self.config.codebook_dim}), those "
                "of each picture of the cache"
            )
        return self._extended(codes, cache)

    def refuse_steps(self) -> None:
        """Raise ValueError unless the encoder is causal, since otherwise no token is known before the last code."""
        if not self.config.causal:
            raise ValueError(
                "got an encoder that is not causal (causal = false), whose tokens depend on codes that are not drawn "
                "yet; to draw, wanted one that is trained with causal = true"
            )

    @torch.no_grad()
    def step_at(self, codes: Tensor, cache: Cache, positions: Tensor) -> Tensor:
        """Return the tokens (B, n, D) of :meth:`step` at positions (n,), int64, for ``torch.compile``.

        Shapes are the same at every position, so a graph can be replayed. Attention reads the whole cache, whose length
        is not changed.
        """
        if cache.codes is not None:
            cache.codes.index_copy_(1, positions, codes)
            codes = self._with_neighbours(cache.codes, positions)
        x = self.norm_pre(self.projector(codes.to(self.pos_embed.dtype)) + self.pos_embed[:, positions])
        seen = cache.seen_at(positions)
        for block, keys, values in zip(self.blocks, cache.keys, cache.values, strict=True):
            x = _block(block, x, partial(attend_at, keys=keys, values=values, positions=positions, seen=seen))
        return self.norm(x)  # type: ignore[no-any-return]

    def _extended(self, codes: Tensor, cache: Cache) -> Tensor:
        self.refuse_steps()
        start, end = cache.length, cache.length + codes.shape[1]
        if end > cache.capacity:
            raise ValueError(f"got {end} codes, but the grid {self.config.grid} has {cache.capacity}")
        if codes.shape[-1] != self.config.codebook_dim:
            raise ValueError(f"got codes of width {codes.shape[-1]}; wanted {self.config.codebook_dim}")
        with torch.no_grad():
            mask = cache.seen(codes.shape[1])
            if cache.codes is not None:
                cache.codes[:, start:end] = codes
                codes = cache.codes[:, :end]
            x = self.norm_pre(self._embedded(codes, start))
            for block, keys, values in zip(self.blocks, cache.keys, cache.values, strict=True):
                x = _block(block, x, partial(attend_with_cache, keys=keys, values=values, start=start, mask=mask))
            cache.length = end
            return self.norm(x)  # type: ignore[no-any-return]

    def projector_inputs(self, codes: Tensor, start: int = 0) -> Tensor:
        """Return what the projector reads, (B, n, k C), at the n positions from ``start`` on.

        ``codes`` are those of the positions, (B, n, C); with neighbours those of the positions before as well.
        """
        if self.config.neighbours:
            return self._with_neighbours(codes, torch.arange(start, codes.shape[1], device=codes.device))
        return codes

    def _embedded(self, codes: Tensor, start: int) -> Tensor:
        """Return the inputs (B, n, D) of the first block; see :meth:`projector_inputs`."""
        read = self.projector_inputs(codes, start)
        x: Tensor = self.projector(read.to(self.pos_embed.dtype))
        return x + self.pos_embed[:, start : start + read.shape[1]]

    def _with_neighbours(self, codes: Tensor, positions: Tensor) -> Tensor:
        """Return the codes (B, n, k C) that the projector reads; outside of the grid they are zeros."""
        columns = self.config.grid[1]
        row, column = positions // columns, positions % columns
        read = []
        for down, right in self._offsets:
            inside = (row + down >= 0) & (column + right >= 0) & (column + right < columns)
            places = (positions + down * columns + right).clamp(min=0)
            read.append(codes[:, places] * inside[:, None])
        return torch.cat(read, dim=-1)

    def _refuse_other(self, codes: Tensor) -> None:
        if codes.ndim != 4 or codes.shape[-1] != self.config.codebook_dim:
            raise ValueError(f"got codes {tuple(codes.shape)}; wanted (B, h, w, {self.config.codebook_dim})")
        grid = tuple(codes.shape[1:3])
        if grid != self.config.grid:
            raise ValueError(
                f"got a grid of {grid[0]} x {grid[1]} codes, but the position embedding is of {self.config.grid[0]} x "
                f"{self.config.grid[1]}; resize the picture, or the encoder (resized_encoder)"
            )


def neighbour_offsets(radius: int) -> list[tuple[int, int]]:
    """Return how many rows down and columns to the right the codes are that a projector reads, its own last.

    >>> neighbour_offsets(1)
    [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 0)]
    """
    side = range(-radius, radius + 1)
    return [(down, right) for down in range(-radius, 1) for right in side if down < 0 or right <= 0]


def encoder_from_tower(
    vision: nn.Module, *, codebook_dim: int, grid: tuple[int, int], causal: bool = True, neighbours: int = 0
) -> SemanticEncoder:
    """Return an encoder with the weights of a vision tower, except for the first layer, which is a new projector.

    A class token moves from the first place to the last, with its position; positions are resampled to the grid.

    Args:
        vision: tower of SigLIP, SigLIP2 or CLIP, from timm or open_clip; see
            :func:`toklip_core.model.described_tower`.
        codebook_dim: codebook dim C of the tokenizer.
        grid: rows and columns of codes.
        causal: whether the encoder is causal; the tower itself is not.
        neighbours: see :class:`EncoderConfig`.

    Raises:
        ValueError: the tower is of another kind.
    """
    trunk, _, tensors = described_tower(vision)
    config = EncoderConfig(codebook_dim=codebook_dim, grid=grid, trunk=trunk, causal=causal, neighbours=neighbours)
    encoder = SemanticEncoder(config)
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("patch_embed.")}
    positions = kept["pos_embed"]
    if trunk.pooling == "class_token":
        kept["class_token"] = kept.pop("cls_token")
        positions = torch.cat([positions[:, 1:], positions[:, :1]], dim=1)
    side = math.isqrt(positions.shape[1])
    kept["pos_embed"] = resampled_positions(positions, (side, side), grid)
    projector = {f"projector.{name}": tensor for name, tensor in encoder.projector.state_dict().items()}
    encoder.load_state_dict(kept | projector)
    return encoder


def resized_encoder(encoder: SemanticEncoder, grid: tuple[int, int]) -> SemanticEncoder:
    """Return an encoder for another grid that shares all weights but the position embedding, which is resampled.

    >>> from toklip_core.model import load_model
    >>> resized_encoder(load_model("toklip-tiny").encoder, (12, 12)).pos_embed.shape
    torch.Size([1, 144, 160])
    """
    config = EncoderConfig.model_validate(encoder.config.model_dump() | {"grid": grid})
    with without_values():
        resized = SemanticEncoder(config)
    tensors = dict(encoder.state_dict())
    tensors["pos_embed"] = resampled_positions(tensors["pos_embed"], encoder.config.grid, grid)
    resized.load_state_dict(tensors, assign=True)
    resized.grad_checkpointing = encoder.grad_checkpointing
    return resized.train(encoder.training)


def resampled_positions(pos_embed: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Return a position embedding (1, N, D), or (1, N + 1, D) with a class token last, resampled to another grid.

    Source: timm's resample_abs_pos_embed: bicubic with antialiasing, in float32. It is not called, because timm 1.0.26
    mistakes the grid for a square if both have the same number of places.
    """
    if old == new:
        return pos_embed.clone()
    count = old[0] * old[1]
    places = pos_embed[:, :count].float().reshape(1, *old, -1).movedim(-1, 1)
    resampled = F.interpolate(places, size=new, mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    return torch.cat([resampled.to(pos_embed.dtype), pos_embed[:, count:]], dim=1)


def _block(block: Any, x: Tensor, attend: Attend) -> Tensor:  # noqa: ANN401
    """Return the output (B, n, D) of timm's Block on x, with another attention of queries, keys and values.

    Args:
        block: timm's Block.
        x: inputs (B, n, D).
        attend: attention of queries, keys and values, (B, H, n, d) each.
    """
    attention = block.attn
    q, k, v = attention.qkv(block.norm1(x)).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    x = x + attention.proj(attend(q, k, v).transpose(1, 2).flatten(2))
    return x + block.mlp(block.norm2(x))  # type: ignore[no-any-return]


def _attention_in_stripes(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return causal attention, computed in stripes of queries; a stripe only scores the keys up to its own end.

    torch's kernel for processors scores 512 keys for every query, in products too small for bfloat16's instructions. At
    N = 576 this function takes 0.55 times as long. In float32 it would not be faster.
    """
    shape, length = q.shape, q.shape[2]
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    seen = []
    for start in range(0, length, _STRIPE):
        end = min(start + _STRIPE, length)
        future = q.new_full((end - start, end), -torch.inf).triu_(start + 1)
        scores = torch.baddbmm(future, q[:, start:end], k[:, :end].mT, alpha=q.shape[-1] ** -0.5)
        seen.append(scores.softmax(-1) @ v[:, :end])
    return torch.cat(seen, dim=1).view(shape)
