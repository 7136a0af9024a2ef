"""Low-rank adapters in a frozen language model, by peft, and merging them into its weights."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from toklip_core.weights import load_strict
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from toklip_mllm.training.settings import LoRA

#: Name in peft for all linear layers except the head.
ALL_LINEAR = "all-linear"

#: GPT-2's layers are linear, too; their weights are transposed.
_LINEAR = (nn.Linear, Conv1D)

_log = logging.getLogger(__name__)


def add_adapters(language_model: nn.Module, lora: LoRA) -> None:
    """Put trainable adapters, float32, into a frozen language model, in place.

    Args:
        language_model: language model of transformers.
        lora: settings of the adapters.

    Raises:
        LookupError: peft is not installed.
        ValueError: no layer has one of the names, or a layer that has it cannot be adapted.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise LookupError(f"{error.name} is not installed: pip install 'toklip-mllm[train]'") from error
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # a float does as well
        lora_dropout=lora.dropout,
        target_modules=_adapted(language_model, lora.targets or (ALL_LINEAR,)),
    )
    with warnings.catch_warnings():
        # peft warns that weights of Conv1D are transposed, although it handles them, and that a tied weight is adapted,
        # which `merged` unties.
        warnings.filterwarnings("ignore", "fan_in_fan_out|Model has `tie_word_embeddings", UserWarning)
        inject_adapter_in_model(settings, language_model)
    for name, weight in language_model.named_parameters():
        if ".lora_" in name:
            weight.data = weight.data.float()


@torch.no_grad()
def merged(tensors: Mapping[str, Tensor], language_model: nn.Module, lora: LoRA) -> dict[str, Tensor]:
    """Return the state dict of an adapted language model with its adapters merged, by peft, in float32.

    If one of two tied weights has an adapter, they are untied, and the config records it.

    Args:
        tensors: adapted state dict, on the CPU.
        language_model: language model without adapters, on the meta device; it is changed.
        lora: settings of the adapters.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    model = cast(Any, language_model)
    add_adapters(model, lora)
    load_strict(model, tensors, source="the adapted language model", mapped=True)
    if any(isinstance(end, BaseTunerLayer) for end in (model.get_input_embeddings(), model.get_output_embeddings())):
        model.config.tie_word_embeddings = False
    for name, layer in [*model.named_modules()]:
        if isinstance(layer, BaseTunerLayer):
            base: nn.Module = layer.get_base_layer()
            # Cloned, because another layer or the caller may have the same weight.
            base.weight = nn.Parameter(cast(Tensor, base.weight).clone())
            cast(Any, layer).merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, base)
    return cast(dict[str, Tensor], model.state_dict())


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
        if isinstance(getattr(layer, "base_layer", layer), _LINEAR) and layer is not head
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


def _adapted(language_model: nn.Module, names: tuple[str, ...]) -> list[str]:
    """Return the full names of the layers that the settings mean."""
    head = cast(Any, language_model).get_output_embeddings()
    layers = dict(language_model.named_modules())
    linear = [name for name, layer in layers.items() if isinstance(layer, _LINEAR) and layer is not head]
    known = sorted({name.rsplit(".", 1)[-1] for name, layer in layers.items() if _is_merged_exactly(layer)})
    found: set[str] = set()
    for wanted in names:
        mine = linear if wanted == ALL_LINEAR else [n for n in layers if n == wanted or n.endswith(f".{wanted}")]
        others = {type(layers[name]).__name__ for name in mine if not _is_merged_exactly(layers[name])}
        if not mine or others:
            reason = f"is a {', '.join(sorted(others))}" if others else "is no layer of the language model"
            raise ValueError(
                f"in lora.targets {wanted!r} {reason}; adapters go into {', '.join(known)}, or {ALL_LINEAR!r}"
            )
        found |= {*mine}
    return sorted(found)


def _is_merged_exactly(layer: nn.Module) -> bool:
    """Return whether the sum of a layer's weights and an adapter computes the same as both together."""
    from peft.tuners.lora import Embedding

    if isinstance(layer, nn.Embedding):
        # Gemma scales its embeddings, and peft from 0.18 on scales the adapter, too. OPT counts positions differently.
        return type(layer) is nn.Embedding or (hasattr(layer, "embed_scale") and hasattr(Embedding, "_get_embed_scale"))
    return isinstance(layer, _LINEAR)
