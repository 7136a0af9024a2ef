"""Conversion of ids to the connector's input: codes, the semantic encoder's tokens, or both."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Self, cast

import torch
from toklip_core.model import SemanticEncoder
from toklip_core.weights import weights_checksum
from torch import Tensor, nn

from toklip_mllm.model.config import TokLIPLMConfig


class PictureEncoder(nn.Module):
    """Module from ids to the connector's input; with features "codes" it has no semantic encoder."""

    #: (K, C), float32 for every dtype of the model.
    codebook: Tensor

    def __init__(self, config: TokLIPLMConfig) -> None:
        super().__init__()
        sizes = config.encoder_config
        self.grid = sizes.grid
        self.features = config.features
        self.register_buffer("codebook", torch.zeros(config.codebook_size, sizes.codebook_dim, dtype=torch.float32))
        self.encoder = None if config.features == "codes" else SemanticEncoder(sizes)

    def forward(self, ids: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Return codes and tokens, or one of them, (P, N, F), of ids (P, h, w); ValueError if the grid differs.

        Args:
            ids: ids of the VQ tokenizer.
            tokens: (P, N, D), the encoder's tokens of these ids if they are known; the encoder does not run then.
        """
        if ids.ndim != 3 or tuple(ids.shape[1:]) != self.grid:
            raise ValueError(f"got ids {tuple(ids.shape)}; wanted (pictures, {self.grid[0]}, {self.grid[1]})")
        codes = self.codebook[ids]
        if self.encoder is None:
            return codes.flatten(1, 2)
        tokens = cast(Tensor, self.encoder(codes).tokens if tokens is None else tokens)
        if self.features == "tokens":
            return tokens
        return torch.cat([codes.flatten(1, 2).to(tokens.dtype), tokens], dim=-1)

    @contextmanager
    def record_hidden_states(self) -> Iterator[list[Tensor]]:
        """Collect the semantic encoder's hidden states (P, N, D) while inside: before each block and after the last."""
        states: list[Tensor] = []
        places = self.grid[0] * self.grid[1]  # a class token comes after them

        def keep(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            states.append(inputs[0][:, :places])

        # Hooks are on the first layer of each block, because not every path through the encoder calls the blocks.
        encoder = self.encoder
        norms = [] if encoder is None else [*(cast(nn.Module, block.norm1) for block in encoder.blocks), encoder.norm]
        hooks = [norm.register_forward_pre_hook(keep) for norm in norms]
        try:
            yield states
        finally:
            for hook in hooks:
                hook.remove()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # `model.to(torch.bfloat16)` is for weights: rounded codes would be other codes.
        kept = self.codebook
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.codebook.dtype != kept.dtype:
            self.codebook = kept.to(self.codebook.device)
        return self


def cast_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast weights in place; buffers, such as the frequencies of rotary positions, keep their dtype."""
    for weight in module.parameters():
        weight.data = weight.data.to(dtype)


def codebook_checksum(rows: Tensor) -> str:
    """Return the sha256 (64 hex digits) of a codebook (K, C): its shape, and its rows in float32."""
    digest = hashlib.sha256(f"{tuple(rows.shape)}\n".encode())
    digest.update(rows.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def encoder_checksum(encoder: nn.Module) -> str:
    """Return the sha256 of an encoder's weights in float32, in which `toklip encode` loads all models."""
    return weights_checksum(round_to(encoder.state_dict(), torch.float32))


def round_to(weights: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return weights, rounded to a dtype; integers stay as they are."""
    return {name: weight.to(dtype) if weight.is_floating_point() else weight for name, weight in weights.items()}
