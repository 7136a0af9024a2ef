"""How well a tokenizer reconstructs pictures: PSNR, SSIM, LPIPS, rFID, and how it uses its codebook.

The figures are torchmetrics' (extra ``toklip-core[evaluate]``). LPIPS and rFID need networks whose weights
are files of other projects: they are taken from the torch hub cache and never downloaded from here.

Shape letters: B batch, H and W picture sides.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from torch import nn

#: The backbones that LPIPS was published with.
LPIPSNet = Literal["alex", "squeeze", "vgg"]

_TORCHVISION_WEIGHTS = {
    "alex": "AlexNet_Weights.DEFAULT",
    "squeeze": "SqueezeNet1_1_Weights.DEFAULT",
    "vgg": "VGG16_Weights.DEFAULT",
}


def load_lpips(net: LPIPSNet) -> nn.Module:
    """Return the frozen LPIPS network: called with two (B, 3, H, W) in [-1, 1] it gives distances (B, 1, 1, 1).

    A gradient flows into both pictures, none into the network. Sides of 32 and more suit every backbone.

    Raises:
        FileNotFoundError: the backbone's file is not in the torch hub cache; it is not downloaded.
        LookupError: torchmetrics or torchvision is not installed.
        ValueError: the file holds something other than tensors, or does not fit.

    Source: https://arxiv.org/abs/1801.03924; its linear heads (v0.1) come with torchmetrics.
    """
    try:
        import torchvision
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
    except ModuleNotFoundError as error:
        raise _extra_is_missing(error) from error
    _cached(torchvision.models.get_weight(_TORCHVISION_WEIGHTS[net]).url)
    try:
        network: nn.Module = LearnedPerceptualImagePatchSimilarity(net_type=net).net
    except RuntimeError as error:
        raise ValueError(f"the weights of LPIPS's {net} do not fit: {error}") from error
    return network.requires_grad_(False)


def _cached(url: str) -> Path:
    """Return the file of ``url`` in the torch hub cache; refuse one that is absent, or is more than tensors."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / url.rsplit("/", 1)[-1]
    if not path.is_file():
        raise FileNotFoundError(f"{path.name} is not in the torch hub cache; fetch {url} and put it into {folder}")
    # torchvision and torch-fidelity unpickle the file without restriction: let torch check it before they do.
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is not a file of plain tensors; delete it, fetch {url} again") from error
    return path


def _extra_is_missing(error: ModuleNotFoundError) -> LookupError:
    return LookupError(f"{error.name} is not installed: pip install 'toklip-core[evaluate]'")
