"""Weights of Chameleon, Emu3, Janus and UniTok in their published layouts, with other numbers in them.

The names and shapes are those of goldens/*.keys.json, which the official classes gave; the numbers of the goldens
come from weights that depend on name and shape only (:func:`named_weight`).
"""

from __future__ import annotations

import json
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

GOLDENS = Path(__file__).parent.parent / "goldens"


def golden(name: str) -> dict[str, Tensor]:
    """The arrays of goldens/NAME.npz."""
    return {key: torch.from_numpy(array) for key, array in np.load(GOLDENS / f"{name}.npz").items()}


def golden_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in the official state dict, from goldens/NAME.keys.json."""
    return {key: tuple(shape) for key, shape in json.loads((GOLDENS / f"{name}.keys.json").read_text()).items()}


def named_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The weights that the goldens were made with."""
    return {name: named_weight(name, shape) for name, shape in shapes.items()}


def named_weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """A weight that depends on its name and shape only; of a counter, zero."""
    if name.endswith(("num_batches_tracked", "codebook_used")):
        return torch.zeros(shape, dtype=torch.int64)
    normal = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if len(shape) >= 2:
        return torch.from_numpy(normal / np.float32(np.sqrt(np.prod(shape[1:]))))
    scale = normal * np.float32(0.1)
    return torch.from_numpy(np.asarray(scale if name.endswith("bias") else 1 + scale))


def pooled_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Random weights of which the large ones share one block of memory: hundreds of millions, in a file of 40 MB."""
    largest = max(int(np.prod(shape)) for shape in shapes.values())
    pool = 0.02 * torch.randn(largest, generator=torch.Generator().manual_seed(0))
    return {
        name: pool[: int(np.prod(shape))].view(shape) if np.prod(shape) > 200_000 else named_weight(name, shape)
        for name, shape in shapes.items()
    }


#: Shapes -> the tensors of a file.
Weights = Callable[[Mapping[str, tuple[int, ...]]], dict[str, Tensor]]


def chameleon_file(path: Path, weights: Weights = named_weights) -> Path:
    """Write ``tokenizer/vqgan.ckpt`` of Chameleon's release."""
    losses = {
        "loss.discriminator.main.0.weight": torch.zeros(64, 3, 4, 4),
        "loss.perceptual_loss.lin0.model.1.weight": torch.zeros(1, 64, 1, 1),
    }
    torch.save({"epoch": 1, "state_dict": weights(golden_shapes("chameleon")) | losses}, path)
    return path


def janus_file(path: Path, weights: Weights = named_weights) -> Path:
    """Write ``pytorch_model.bin`` of Janus-Pro: the tokenizer, and a word of all the rest."""
    tokenizer = weights(golden_shapes("llamagen_vq16"))
    rest = {"language_model.model.norm.weight": torch.ones(8), "gen_embed.weight": torch.ones(16, 8)}
    torch.save({f"gen_vision_model.{name}": tensor for name, tensor in tokenizer.items()} | rest, path)
    return path


def emu3_file(path: Path, weights: Weights = named_weights) -> Path:
    """Write the weights of ``BAAI/Emu3-VisionTokenizer``, as a torch file."""
    torch.save(weights(golden_shapes("emu3")), path)
    return path


def unitok_file(path: Path, weights: Weights = named_weights, golden: str = "unitok") -> Path:
    """Write ``unitok_tokenizer.pth``: the model in the middle of its training."""
    trainer = {
        "config": {"dbg_unused": False},
        "unitok": weights(golden_shapes(golden)),
        "disc": {"dino_proxy.0.weight": torch.zeros(8, 3, 4, 4)},
        "unitok_optim": {"state": {0: {"step": torch.tensor(7.0)}}, "param_groups": [{"lr": 5e-4, "params": [0]}]},
        "disc_optim": {},
    }
    settings = {"model": "vitamin_large", "num_codebooks": 8, "vocab_norm": True, "dtype": torch.float32, "seed": None}
    torch.save({"args": OrderedDict(settings), "epoch": 1, "iter": 0, "trainer": trainer}, path)
    return path


FAMILIES = {"chameleon-vqgan": chameleon_file, "emu3-vision": emu3_file, "janus-vq16": janus_file}


def write_family(name: str, folder: Path) -> Path:
    """Write a small file of the layout that the tokenizer ``name`` is published in, and return its path."""
    return FAMILIES[name](folder / f"{name}.bin", pooled_weights)
