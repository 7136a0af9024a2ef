"""VILA-U and TokenFlow at the small sizes of the goldens, with files of the published layout, and as a plugin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from toklip_core.plugins import TokenizerSpec, hookimpl
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
    blocks_per_resolution=2,
    z_channels=32,
    decoder_side=4,
)

#: Like the one for 384 pixels: patches that leave pixels out, and a map that is resized before the decoder.
VILA_U_RESIZED = VilaUConfig(
    siglip=SiglipSizes(width=32, layers=2, heads=2, hidden=48, image_size=32, patch_size=10),
    levels=3,
    codebook_size=40,
    channels=32,
    blocks_per_resolution=1,
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
    return Tokenizer("small-vila-u", load_vila_u(path, VILA_U), path)


def tokenflow(folder: Path, golden: str = "tokenflow") -> Tokenizer:
    """A small TokenFlow, loaded from a file of the published layout."""
    path = folder / f"{golden}.pt"
    torch.save({"ema": tokenflow_weights(golden), "steps": 1}, path)
    return Tokenizer(f"small-{golden.replace('_', '-')}", load_tokenflow(path, TOKENFLOW[golden]), path)


def vila_u_resized() -> Tokenizer:
    """A small VILA-U of the sizes VILA_U_RESIZED, with weights by the rule of the goldens."""
    tensors = vila_u_file(VILA_U_RESIZED, deterministic)
    return Tokenizer("small-vila-u-resized", load_vila_u(tensors, VILA_U_RESIZED), tensors)


def vila_u_file(config: VilaUConfig, weight: Callable[[str, tuple[int, ...]], Tensor]) -> dict[str, Tensor]:
    """A file of the published layout for any sizes: the tensors that are read, ``weight(name, shape)`` each."""
    with torch.device("meta"):
        state = VilaU(config).state_dict()
    levels = len(config.channel_multipliers)
    shapes = {f"rqvaesiglip.{vila_u_name(f'network.{ours}', levels)}": tuple(t.shape) for ours, t in state.items()}
    table = weight("table", (config.codebook_size + 1, config.siglip.width))
    tables = {f"rqvaesiglip.quantizer.codebooks.{level}.weight": table for level in range(config.levels)}
    return {name: weight(name, shape) for name, shape in shapes.items()} | tables


@hookimpl
def toklip_register_tokenizers() -> list[TokenizerSpec]:
    """The small ones, whose own weights are those of the goldens."""
    return [
        TokenizerSpec(
            name="small-vila-u",
            factory=lambda given: load_vila_u(vila_u_weights() if given is None else given, VILA_U),
            summary="For tests.",
            image_size=64,
        ),
        TokenizerSpec(
            name="small-tokenflow",
            factory=lambda given: load_tokenflow(
                tokenflow_weights("tokenflow") if given is None else given, TOKENFLOW["tokenflow"]
            ),
            summary="For tests.",
            image_size=64,
        ),
    ]


def install(folder: Path) -> Path:
    """Write what an installer would write for this module as a plugin into a folder, for sys.path."""
    info = folder / "small_published-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: small-published\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[toklip]\nsmall-published = {__name__}\n")
    return folder
