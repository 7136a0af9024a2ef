"""What a tokenizer is trained against beside its pictures: the discriminator, and the adversarial losses.

Shape letters: B batch.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from toklip_core.training import mean_over_processes
from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """PatchGAN: one logit for each overlapping patch of a picture, which is 70 x 70 pixels with three layers.

    Args:
        channels: width of the first convolution; each layer doubles it, up to eight times the width.
        layers: number of convolutions that halve the picture.
        norm: "batch", as published, normalises over the pictures of one process; "group" treats each picture alone.

    Source: Isola et al., https://arxiv.org/abs/1611.07004; initialised from N(0, 0.02) as there.
    """

    def __init__(self, channels: int = 64, layers: int = 3, norm: Literal["batch", "group"] = "batch") -> None:
        super().__init__()
        widths = [channels * min(2**i, 8) for i in range(layers + 1)]
        stack: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for i in range(1, layers + 1):
            stride = 2 if i < layers else 1
            convolution = nn.Conv2d(widths[i - 1], widths[i], 4, stride, 1, bias=norm == "group")
            stack += [convolution, _norm(norm, widths[i]), nn.LeakyReLU(0.2)]
        self.stack = nn.Sequential(*stack, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits (B, 1, h, w) of pixels (B, 3, H, W), high where the pixels look real."""
        logits: Tensor = self.stack(pixels)
        return logits


def _norm(norm: Literal["batch", "group"], width: int) -> nn.Module:
    if norm == "group":
        return nn.GroupNorm(min(32, width), width)
    # No running statistics: a discriminator is never used outside training.
    return nn.BatchNorm2d(width, track_running_stats=False)


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return the discriminator's hinge loss, a scalar, of its logits for real and fake pictures. Source: https://arxiv.org/abs/1705.02894."""
    return (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean()) / 2


def generator_loss(fake: Tensor, kind: Literal["hinge", "non-saturating"]) -> Tensor:
    """Return the decoder's adversarial loss, a scalar, from the discriminator's logits (B, 1, h, w) of its pictures.

    "hinge" is -mean(logits), as in LlamaGen. "non-saturating" is -log sigmoid of each picture's mean logit, as in IBQ
    (SEED-Voken, losses/vqperceptual.py).
    """
    if kind == "hinge":
        return -fake.float().mean()
    return F.softplus(-fake.float().flatten(1).mean(1)).mean()


class LeCam(nn.Module):
    """LeCam regularisation of a discriminator: keeps real logits near the average of fake ones, and the reverse.

    Source: Tseng et al., https://arxiv.org/abs/2104.03310; rectified, and the averages updated first, as in
    SEED-Voken, losses/vqperceptual.py.
    """

    real: Tensor
    fake: Tensor

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("fake", torch.zeros(()))

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """Update the averages over all processes; return the regularisation, a scalar, of real and fake logits."""
        real, fake = real.float(), fake.float()
        with torch.no_grad():
            self.real.lerp_(mean_over_processes(real.mean()), 1 - self.decay)
            self.fake.lerp_(mean_over_processes(fake.mean()), 1 - self.decay)
        # Clones, because the next forward pass may change the buffers before this one's backward pass has run.
        return (
            F.relu(real - self.fake.clone()).square().mean() + F.relu(self.real.clone() - fake).square().mean()
        )
