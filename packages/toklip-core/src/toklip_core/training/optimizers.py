"""Optimizers of a run: AdamW, and on request Muon for the matrices of hidden layers.

Source: Jordan et al., Muon, https://kellerjordan.github.io/posts/muon/.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from toklip_core.config import RunConfig

#: Parameters of two and more dimensions that are not multiplied with inputs.
_NO_PRODUCT = {"pos_embed", "cls_token", "class_token", "latent", "positional_embedding"}
#: Names of modules with the matrices of hidden layers: blocks of timm, open_clip and transformers.
_BLOCKS = {"blocks", "resblocks", "layers", "h"}


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters that share optimizer settings. With several groups, one optimizer trains several networks."""

    #: Names from ``model.named_parameters()``.
    names: frozenset[str]
    #: Factor on the learning rate of the run.
    learning_rate_factor: float = 1.0
    weight_decay: float | None = None
    max_grad_norm: float | None = None
    #: Whether these are weight matrices (rows, columns) of hidden layers, which Muon can train.
    matrices: bool = False
    #: Label; gradients of groups with the same label are clipped together, with the first one's limit.
    clip_with: str = "model"


def parameter_groups(
    model: nn.Module, factors: Mapping[str, float] | None = None, *, decay_embeddings: bool = False
) -> list[ParameterGroup]:
    """Return groups in which only matrices have weight decay, and those of blocks can be trained by Muon.

    Norms, biases, positions, learnt tokens and scalars are not decayed.

    Args:
        model: model to train; frozen parameters are left out.
        factors: name of a module, such as "projector" -> factor on the learning rate of its parameters.
        decay_embeddings: whether embeddings of words or ids have weight decay too. It shrinks the rows of rare ids,
            which seldom get a gradient.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    groups: dict[tuple[float, bool, bool], set[str]] = {}
    for name, weight in trainable(model).items():
        parts = {*name.split(".")}
        factor = next((factor for part, factor in (factors or {}).items() if part in parts), 1.0)
        product = weight.ndim > 1 and not _NO_PRODUCT & parts
        decayed = product and (decay_embeddings or id(weight) not in embeddings)
        matrix = decayed and weight.ndim == 2 and bool(_BLOCKS & parts)
        groups.setdefault((factor, decayed, matrix), set()).add(name)
    return [
        ParameterGroup(
            names=frozenset(names), learning_rate_factor=factor, weight_decay=None if decayed else 0.0, matrices=matrix
        )
        for (factor, decayed, matrix), names in groups.items()
    ]


def build_optimizers(
    weights: Mapping[str, nn.Parameter],
    run: RunConfig,
    groups: Sequence[ParameterGroup],
    *,
    fused: bool = False,
    sharded: bool = False,
) -> list[torch.optim.Optimizer]:
    """Return AdamW, and before it Muon if the run asks for it and a group has matrices for it.

    Each of their groups has a ``factor`` on the run's learning rate.

    Args:
        weights: name -> parameter to train.
        run: learning rates, betas and weight decay.
        groups: groups that contain every weight exactly once.
        fused: whether to use AdamW's fused kernel.
        sharded: whether FSDP will shard the weights.

    Raises:
        LookupError: the run asks for Muon, which this release of torch does not have.
        ValueError: Muon is asked for with sharding, with fp16, or without matrices.
    """
    listed = sorted(name for group in groups for name in group.names)
    assert listed == sorted(weights), f"not in exactly one group: {sorted({*listed} ^ {*weights})[:5]}"
    settings: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for group in groups:
        by_muon = group.matrices and run.muon_learning_rate > 0
        rate = run.muon_learning_rate / run.learning_rate if by_muon else 1.0
        options: dict[str, Any] = {} if by_muon else {"betas": run.betas}
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
        raise ValueError("got muon_learning_rate with FSDP, whose shards are not matrices; set it to 0 for AdamW")
    if run.precision == "fp16":  # accelerate's scaler would unscale the gradients of the second optimizer twice
        raise ValueError("got muon_learning_rate with precision 'fp16'; use 'bf16' or 'no'")
    return torch.optim.Muon(groups, adjust_lr_fn="original")  # Keller Jordan's scale: sqrt(max(1, rows / columns))


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are not frozen, by name."""
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
