"""Tensors of a run's checkpoint, whole or from the shards of several processes."""

import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor


def last_checkpoint(out: Path) -> Path:
    return max((out / "checkpoints").iterdir())


def last(out: Path, part: str) -> dict[str, Tensor]:
    """Return a part of the last checkpoint of a run: model, average or optimizer."""
    save = last_checkpoint(out)
    if (save / f"{part}.safetensors").exists():
        return load_file(save / f"{part}.safetensors")
    from torch.distributed import checkpoint

    reader = checkpoint.HuggingFaceStorageReader(str(save))
    found = {name: tensor.size for name, tensor in reader.read_metadata().state_dict_metadata.items()}
    tensors = {name: torch.empty(size) for name, size in found.items() if name.startswith(f"{part}/")}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        checkpoint.load(tensors, storage_reader=reader)
    return {name.removeprefix(f"{part}/"): tensor for name, tensor in tensors.items()}
