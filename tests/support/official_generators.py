"""LlamaGen's small generators of the goldens, with weights that depend only on a tensor's official name and shape."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from toklip_gen.generator import ClassCondition, GeneratorConfig, TextCondition

GOLDENS = Path(__file__).parents[1] / "goldens"


def described(name):
    """The config of a golden, and every name and shape of its official state dict."""
    golden = json.loads((GOLDENS / name).read_text())
    official = golden["config"]
    side = math.isqrt(official["block_size"])
    condition = (
        ClassCondition(classes=official["num_classes"])
        if official["model_type"] == "c2i"
        else TextCondition(encoder="t5", length=official["cls_token_num"], width=official["caption_dim"])
    )
    config = GeneratorConfig(
        tokenizer={"name": "any"},
        codebook_sizes=(official["vocab_size"],),
        image_size=(8 * side, 8 * side),
        grid=(side, side),
        width=official["dim"],
        depth=official["n_layer"],
        heads=official["n_head"],
        condition=condition,
    )
    return config, {key: tuple(shape) for key, shape in golden["keys"].items()}


def deterministic(name, shape):
    """A tensor under the rule that the goldens were made with."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if len(shape) >= 2:
        return torch.from_numpy(values / np.float32(math.sqrt(math.prod(shape[1:]))))
    return torch.from_numpy(1 + np.float32(0.1) * values)


def saved(folder, golden, layout="model"):
    """The file of a golden's generator, its tensors under ``layout`` (flat for None), and its config."""
    config, keys = described(golden)
    tensors = {name: deterministic(name, shape) for name, shape in keys.items()}
    path = folder / "official.pt"
    torch.save(tensors if layout is None else {layout: tensors, "steps": 5}, path)
    return path, config
