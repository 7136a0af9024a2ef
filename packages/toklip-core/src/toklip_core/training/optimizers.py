"""Which optimizer trains which weights: AdamW, and Muon for the matrices of hidden layers where a run asks for it.

Source: Jordan et al., Muon, https://kellerjordan.github.io/posts/muon/.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from toklip_core.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters that share optimizer settings. Several groups make one optimizer hold several networks."""

    #: Names as ``model.named_parameters()`` has them.
    names: frozenset[str]
    #: Times the learning rate of the run.
    learning_rate_factor: float = 1.0
    #: None takes the run's.
    betas: tuple[float, float] | None = None
    weight_decay: float | None = None
    max_grad_norm: float | None = None
    #: Weight matrices of hidden layers, (rows, columns) each, which ``run.muon_learning_rate`` is for.
    matrices: bool = False
    #: Groups of the same label have their gradients clipped together, by the first one's norm.
    clip_with: str = "model"


def build_optimizers(
    weights: Mapping[str, nn.Parameter],
    run: RunConfig,
    groups: Sequence[ParameterGroup],
    *,
    fused: bool = False,
    sharded: bool = False,
) -> list[torch.optim.Optimizer]:
    """Return AdamW, and before it Muon if the run has it and a group is for it.

    Each of their groups has a ``factor``: times the run's learning rate it is the group's own.

    Args:
        weights: what is trained, by name.
        run: learning rates, betas and weight decay.
        groups: every weight is in exactly one; none: all in one.
        fused: use AdamW's fused kernel.
        sharded: the weights will be shards, of FSDP.

    Raises:
        LookupError: the run wants Muon, and torch has none.
        ValueError: it wants Muon for shards, for fp16, or where no group is for it.
    """
    groups = groups or [ParameterGroup(names=frozenset(weights))]
    listed = sorted(name for group in groups for name in group.names)
    assert listed == sorted(weights), f"not in exactly one group: {sorted({*listed} ^ {*weights})[:5]}"
    settings: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for group in groups:
        by_muon = group.matrices and run.muon_learning_rate > 0
        rate = run.muon_learning_rate / run.learning_rate if by_muon else 1.0
        options: dict[str, Any] = {} if by_muon else {"betas": group.betas or run.betas}
        settings[by_muon].append(
            {
                "params": [weight for name, weight in weights.items() if name in group.names],
                "factor": rate * group.learning_rate_factor,
                "weight_decay": run.weight_decay if group.weight_decay is None else group.weight_decay,
                **options,
            }
        )
    if run.muon_learning_rate and not settings[True]:
        raise ValueError("got muon_learning_rate, but this training has no matrices for Muon; leave it out")
    adam = torch.optim.AdamW(settings[False], lr=run.learning_rate, fused=fused) if settings[False] else None
    return [*([_muon(settings[True], run, sharded)] if settings[True] else []), *([adam] if adam else [])]


def _muon(groups: list[dict[str, Any]], run: RunConfig, sharded: bool) -> torch.optim.Optimizer:
    if not hasattr(torch.optim, "Muon"):
        raise LookupError("muon_learning_rate needs torch 2.9 or newer: pip install --upgrade torch")
    if sharded:
        raise ValueError("got muon_learning_rate with FSDP, whose shards are no matrices; set it to 0 for AdamW")
    if run.precision == "fp16":  # accelerate's scaler would unscale the gradients of the second optimizer twice
        raise ValueError("got muon_learning_rate with precision 'fp16'; use 'bf16' or 'no'")
    return torch.optim.Muon(groups, adjust_lr_fn="original")  # Keller Jordan's scale: sqrt(max(1, rows / columns))


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are not frozen, by name."""
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
