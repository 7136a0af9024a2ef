"""Lightning files of TencentARC/SEED-Voken: IBQ and Open-MAGVIT2.

Such a file has the weights twice: the raw weights under their names, and their moving average under ``model_ema.``
and the name without dots. The published figures were measured with the averaged weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from toklip_core.plugins import Weights
from toklip_core.weights import load_strict, read_weights, source_name
from torch import nn

_OF_TRAINING = {
    r"loss\..+": "the discriminator and the perceptual network of training",
    r"model_ema\.(decay|num_updates|loss.+)": "the average's own state, and the discriminator's average",
}


def load_lightning(
    module: nn.Module, weights: Weights | str, published_name: Callable[[str], str], *, averaged: bool
) -> None:
    """Fill a module with the weights of a file: .ckpt as published, or its ``state_dict`` as .safetensors.

    Args:
        module: module whose whole state dict is filled.
        weights: the file, or tensors by its names.
        published_name: name in the module's state dict -> name of that tensor among the raw weights.
        averaged: take the averaged weights, or the raw ones.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or does not fit.
    """

    def averaged_name(name: str) -> str:
        return "model_ema." + published_name(name).replace(".", "")

    tensors = read_weights(weights, ("state_dict",))
    if averaged and not any(name.startswith("model_ema.") for name in tensors):
        raise ValueError(
            f"{source_name(weights)!r} has no averaged weights (model_ema.*); take the raw ones: the tokenizer's name "
            "with -raw, or averaged=False"
        )
    taken, left = (averaged_name, published_name) if averaged else (published_name, averaged_name)
    others = "|".join(re.escape(left(name)) for name in module.state_dict())
    reason = "the averaged weights are taken" if averaged else "the raw weights were asked for"
    load_strict(module, tensors, source=weights, name_in_file=taken, ignored=_OF_TRAINING | {others: reason})
