"""Low-rank adapters in a frozen language model, by peft, and merging them into its weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, cast

import torch
from toklip_core.weights import load_strict
from torch import Tensor, nn

from toklip_mllm.model import ALL_LINEAR, LINEAR_LAYERS
from toklip_mllm.training.settings import LoRA


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
        # which `merge_adapters` unties.
        warnings.filterwarnings("ignore", "fan_in_fan_out|Model has `tie_word_embeddings", UserWarning)
        inject_adapter_in_model(settings, language_model)
    for name, weight in language_model.named_parameters():
        if ".lora_" in name:
            weight.data = weight.data.float()


@torch.no_grad()
def merge_adapters(tensors: Mapping[str, Tensor], language_model: nn.Module, lora: LoRA) -> dict[str, Tensor]:
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


def _adapted(language_model: nn.Module, names: tuple[str, ...]) -> list[str]:
    """Return the full names of the layers that the settings mean."""
    head = cast(Any, language_model).get_output_embeddings()
    layers = dict(language_model.named_modules())
    linear = [name for name, layer in layers.items() if isinstance(layer, LINEAR_LAYERS) and layer is not head]
    known = sorted({name.rsplit(".", 1)[-1] for name, layer in layers.items() if _is_merged_exactly(layer)})
    found: set[str] = set()
    for wanted in names:
        mine = linear if wanted == ALL_LINEAR else [n for n in layers if n == wanted or n.endswith(f".{wanted}")]
        others = {type(layers[name]).__name__ for name in mine if not _is_merged_exactly(layers[name])}
        if not mine or others:
            reason = f"is a {', '.join(sorted(others))}" if others else "is not a layer of the language model"
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
    return isinstance(layer, LINEAR_LAYERS)
