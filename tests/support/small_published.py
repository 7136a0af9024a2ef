"""VILA-U and TokenFlow at the small sizes of the goldens, with files of the published layout, for tests."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from toklip_core.tokenizer import Tokenizer
from toklip_vq.published import (
    ClipSizes,
    SiglipSizes,
    TokenFlowConfig,
    VilaUConfig,
    load_tokenflow,
    load_vila_u,
    vila_u_name,
)
from toklip_vq.published.vila_u import VilaU
from torch import Tensor

from tests.support.deterministic import deterministic, small_weights

VILA_U = VilaUConfig(
    siglip=SiglipSizes(width=64, layers=4, heads=4, hidden=112, image_size=64, patch_size=16),
    codebook_size=2048,
    channels=32,
    blocks_per_level=2,
    z_channels=32,
    decoder_side=4,
)

#: Like the one for 384 pixels: patches that leave pixels out, and a map that is resized before the decoder.
VILA_U_RESIZED = VilaUConfig(
    siglip=SiglipSizes(width=32, layers=2, heads=2, hidden=48, image_size=32, patch_size=10),
    levels=3,
    codebook_size=40,
    channels=32,
    blocks_per_level=1,
    z_channels=16,
    decoder_side=2,
)

_TOKENFLOW = {
    "encoder_channels": 32,
    "decoder_channels": 32,
    "z_channels": 64,
    "codebook_size": 2048,
    "semantic_dim": 16,
    "semantic_layers": 2,
    "semantic_heads": 3,
    "semantic_positions": 3,
    "feature_dim": 40,
}

#: Name of the golden -> sizes.
TOKENFLOW = {
    "tokenflow": TokenFlowConfig(
        image_size=64,
        scales=(1, 2, 3, 4),
        tower=ClipSizes(width=48, layers=2, heads=3, patch_size=16, positions=3),
        **_TOKENFLOW | {"decoder_channels": 64, "decoder_blocks": 2},
    ),
    "tokenflow_siglip": TokenFlowConfig(
        image_size=44,
        scales=(1, 2, 3),
        tower=SiglipSizes(width=48, layers=3, heads=3, hidden=80, image_size=44, patch_size=14),
        **_TOKENFLOW,
    ),
}


def vila_u_weights() -> dict[str, Tensor]:
    """The weights of the golden, with the statistics of training that a file has."""
    tensors = small_weights("vila_u")
    for level in range(VILA_U.levels):
        book = f"rqvaesiglip.quantizer.codebooks.{level}."
        tensors[f"{book}cluster_size_ema"] = torch.zeros(2048)
        tensors[f"{book}embed_ema"] = torch.zeros(2048, 64)
    return tensors


def tokenflow_weights(golden: str) -> dict[str, Tensor]:
    """The weights of a golden, with what the rule of the goldens leaves alone."""
    tensors = small_weights(golden)
    if golden == "tokenflow_siglip":
        half = torch.full((1, 3, 1, 1), 0.5)
        tensors |= {"scaling_layer.shift": half, "scaling_layer.scale": half.clone()}
    return tensors | {"quantize.codebook_used": torch.zeros(2048)}


def vila_u(folder: Path) -> Tokenizer:
    """A small VILA-U, loaded from a file of the published layout."""
    path = folder / "model.safetensors"
    save_file({name: tensor.contiguous().clone() for name, tensor in vila_u_weights().items()}, path)
    return Tokenizer("vila-u-256", load_vila_u(path, VILA_U), path)


def tokenflow(folder: Path, golden: str = "tokenflow") -> Tokenizer:
    """A small TokenFlow, loaded from a file of the published layout."""
    path = folder / f"{golden}.pt"
    torch.save({"ema": tokenflow_weights(golden), "steps": 1}, path)
    name = "tokenflow-siglip" if golden.endswith("siglip") else "tokenflow-clipb"
    return Tokenizer(name, load_tokenflow(path, TOKENFLOW[golden]), path)


def vila_u_resized() -> Tokenizer:
    """A small VILA-U of the sizes VILA_U_RESIZED, with weights by the rule of the goldens."""
    with torch.device("meta"):
        state = VilaU(VILA_U_RESIZED).state_dict()
    names = {f"rqvaesiglip.{vila_u_name(f'network.{ours}', levels=5)}": tensor for ours, tensor in state.items()}
    tensors = {name: deterministic(name, tuple(tensor.shape)) for name, tensor in names.items()}
    for level in range(VILA_U_RESIZED.levels):
        tensors[f"rqvaesiglip.quantizer.codebooks.{level}.weight"] = deterministic("table", (41, 32))
    return Tokenizer("vila-u-384", load_vila_u(tensors, VILA_U_RESIZED), tensors)
