"""Keeping adapters of peft out of the parts of a model that stay as they are."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import nn
from transformers.pytorch_utils import Conv1D

#: Name in peft for all linear layers except the head.
ALL_LINEAR = "all-linear"

#: Linear layers; GPT-2's are linear, too, and their weights are transposed.
LINEAR_LAYERS = (nn.Linear, Conv1D)

_log = logging.getLogger(__name__)


def keep_out(model: nn.Module, settings: Mapping[str, Any], *, parts: tuple[str, ...]) -> None:
    """Keep adapters out of parts of a model, unless the settings name the part.

    "all-linear", and names such as "fc1" that layers of several parts have, mean the language model. Layers that are
    left out are excluded in the settings, so that adapters load as they were saved.

    Args:
        model: model before or after peft adds adapters; those in the parts are removed.
        settings: settings of peft, by adapter name.
        parts: first words of the layers' names.
    """
    for adapter, config in settings.items():
        if (targets := getattr(config, "target_modules", None)) is None:
            continue
        outside = _outside_adapters(model)
        layers = _layers_of(adapter, config, outside, model)
        left_out = [part for part in parts if not _is_asked_for(part, targets, layers, outside, model)]
        found = [name for name in layers if name.split(".")[0] in left_out]
        for name in found:
            _take_out(adapter, name, model)
        if found:
            excluded, ours = getattr(config, "exclude_modules", None), rf"({'|'.join(left_out)})\..*"
            if isinstance(excluded, str):
                config.exclude_modules = f"({excluded})|{ours}"
            else:
                config.exclude_modules = [*excluded, *found] if excluded else ours
            _log.warning(
                "adapters are not put into %s; target_modules that name it, such as r'%s\\..*', adapt it, too",
                " and ".join(sorted({name.split(".")[0] for name in found})),
                left_out[0],
            )


def _outside_adapters(model: nn.Module) -> dict[str, nn.Module]:
    """Return a model's layers by name; an adapted layer is one layer."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = dict(model.named_modules())
    inside = tuple(f"{name}." for name, layer in layers.items() if isinstance(layer, BaseTunerLayer))
    return {name: layer for name, layer in layers.items() if not name.startswith(inside)}


def _has(adapter: str, layer: nn.Module) -> bool:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return isinstance(layer, BaseTunerLayer) and adapter in cast(Any, layer)._get_available_adapters()


def _layers_of(
    adapter: str,
    config: Any,  # noqa: ANN401 - of peft
    outside: Mapping[str, nn.Module],
    model: nn.Module,
) -> list[str]:
    """Return the layers with an adapter, or before peft adds it, the layers that its settings mean."""
    from peft.tuners.tuners_utils import check_target_module_exists

    if found := [name for name, layer in outside.items() if _has(adapter, layer)]:
        return found
    meant = config
    if isinstance(config.target_modules, str) and config.target_modules.lower() == ALL_LINEAR:
        meant = copy.copy(config)
        meant.target_modules = _linear(outside, model)
    return [name for name in outside if name and check_target_module_exists(meant, name)]


def _linear(outside: Mapping[str, nn.Module], model: nn.Module) -> set[str]:
    """Return all linear layers except the head, adapted or not."""
    head = cast(Any, model).get_output_embeddings()
    return {
        name
        for name, layer in outside.items()
        if isinstance(getattr(layer, "base_layer", layer), LINEAR_LAYERS) and layer is not head
    }


def _take_out(adapter: str, name: str, model: nn.Module) -> None:
    """Remove an adapter from a layer if it has it."""
    layer = cast(Any, model.get_submodule(name))
    if not _has(adapter, layer):
        return
    if len(layer._get_available_adapters()) > 1:
        layer.delete_adapter(adapter)
    else:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())


def _is_asked_for(
    part: str,
    targets: Any,  # noqa: ANN401 - a text, or a list or set of texts
    layers: Sequence[str],
    outside: Mapping[str, nn.Module],
    model: nn.Module,
) -> bool:
    """Return whether target_modules, which put an adapter into these layers, name a part of a model."""
    if isinstance(targets, str):
        return part in targets
    # peft turns "all-linear" into the names of all linear layers; then none of these layers is left out.
    left = {name for name in _linear(outside, model) - {*layers} if name.split(".")[0] in (part, "language_model")}
    return bool(left) and any(part in target.split(".") for target in targets)
