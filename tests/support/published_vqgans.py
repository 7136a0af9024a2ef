"""Weights files in the published layouts, with other numbers in them, for tests without a network."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from toklip_core.plugins import registry
from toklip_vq.published import CONFIGS, ibq_config, llamagen_name, taming_name
from toklip_vq.vqgan import VQGAN, VQGANConfig
from torch import Tensor

from tests.support.published_families import FAMILIES, write_family

#: Names of the built-in tokenizers that have a published file.
PUBLISHED = (*(name for name in registry().tokenizers if name.startswith(("llamagen-vq", "ibq-"))), *FAMILIES)


def write_published(name: str, folder: Path) -> Path:
    """Write the file that the tokenizer ``name`` is published as, and return its path."""
    if name in FAMILIES:
        return write_family(name, folder)
    path = folder / f"{name}.{'pt' if name.startswith('llamagen') else 'ckpt'}"
    torch.save(llamagen_file(name) if name.startswith("llamagen") else lightning_file(int(name.split("-")[1])), path)
    return path


def llamagen_file(name: str) -> dict[str, object]:
    """A LlamaGen file: weights under `model`, and the training script's arguments."""
    size = "VQ-16" if "vq16" in name else "VQ-8"
    model = {llamagen_name(ours): tensor for ours, tensor in filled(CONFIGS[size])}
    model["quantize.codebook_used"] = torch.zeros(65536)
    return {"model": model, "steps": 1, "args": argparse.Namespace(vq_model=size)}


def lightning_file(codebook_size: int) -> dict[str, object]:
    """An IBQ file: raw weights, their average, loss networks, and what Lightning adds."""
    raw = {taming_name(ours): tensor for ours, tensor in filled(ibq_config(codebook_size))}
    losses = {
        "loss.discriminator.main.0.weight": torch.zeros(64, 3, 4, 4),
        "loss.perceptual_loss.net.slice1.0.weight": torch.zeros(64, 3, 3, 3),
    }
    # A sign tells the average from the raw weights; shared storage keeps the file at half the size.
    average = {"model_ema." + key.replace(".", ""): tensor for key, tensor in raw.items()}
    average["model_ema.quant_convbias"] = -raw["quant_conv.bias"]
    average["model_ema.lossdiscriminatormain0weight"] = torch.zeros(64, 3, 4, 4)
    average |= {"model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(-1, dtype=torch.int32)}
    return {
        "epoch": 1,
        "global_step": 2,
        "pytorch-lightning_version": "2.2.0",
        "state_dict": raw | losses | average,
        "callbacks": {"ModelCheckpoint{'monitor': 'train/perceptual_loss'}": {"best_model_score": torch.tensor(0.2)}},
        "optimizer_states": [
            {"state": {0: {"step": torch.tensor(2.0)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
        ],
        "lr_schedulers": [],
    }


def filled(config: VQGANConfig) -> Iterator[tuple[str, Tensor]]:
    """Yield names and tensors of random weights, all parts of one block of memory: that makes large files small."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in VQGAN(config).state_dict().items()}
    pool = torch.randn(max(shape.numel() for shape in shapes.values()), generator=torch.Generator().manual_seed(0))
    pool *= 0.02
    for name, shape in shapes.items():
        tensor = pool[: shape.numel()].view(shape)
        yield name, 1 + tensor if "norm" in name and name.endswith("weight") else tensor
