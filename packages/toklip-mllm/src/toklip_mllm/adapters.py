"""Low-rank adapters in a frozen language model, by peft, and merging them into its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from toklip_mllm.settings import LoRA


def add_adapters(language_model: nn.Module, lora: LoRA) -> None:
    """Put trainable adapters, float32, into a frozen language model, in place.

    Args:
        language_model: of transformers.
        lora: their settings.

    Raises:
        LookupError: peft is not installed.
        ValueError: no linear layer has one of the names.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise LookupError(f"{error.name} is not installed: pip install 'toklip-mllm[train]'") from error
    head = cast(Any, language_model).get_output_embeddings()
    linear = {name for name, part in language_model.named_modules() if isinstance(part, nn.Linear) and part is not head}
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # a float does as well
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets) or sorted({name.rsplit(".", 1)[-1] for name in linear}),
    )
    inject_adapter_in_model(settings, language_model)
    for name, weight in language_model.named_parameters():
        if ".lora_" in name:
            weight.data = weight.data.float()


def merged(tensors: Mapping[str, Tensor], lora: LoRA | None) -> dict[str, Tensor]:
    """Return a state dict with its adapters merged: W + alpha / rank B A for each adapted W."""
    if lora is None:
        return dict(tensors)
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if ".lora_" in name:
            continue
        plain_name = name.replace(".base_layer.", ".")
        down = tensors.get(name.replace(".base_layer.weight", ".lora_A.default.weight"))
        if plain_name != name and name.endswith("weight") and down is not None:
            up = tensors[name.replace(".base_layer.weight", ".lora_B.default.weight")]
            tensor = (tensor.float() + lora.alpha / lora.rank * (up.float() @ down.float())).to(tensor.dtype)
        found[plain_name] = tensor
    return found
