"""What a tokenizer is trained with: the quantizers' losses, the discriminator's, and how the codebook is used.

Shape letters: B batch, N tokens of the batch in this process, K codebook size, C codebook dim. Latents are (N, C).

All of it computes in float32, whatever autocast says. What is a mean over the batch alone is left to the average of
gradients over processes; what is not (entropy, use of the codebook) is averaged over processes here.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from toklip_core.training import mean_over_processes
from torch import Tensor, nn

from toklip_vq.vqgan import Codebook

#: Term that the factor beta weighs: the one in the paper, or the one in IBQ's public code.
BetaPlacement = Literal["paper", "code"]


class Quantization(NamedTuple):
    """The codes and ids of latents, and the loss that trains both."""

    #: (N, C): codebook rows, with a gradient to the latents and, for index backpropagation, to the codebook.
    codes: Tensor
    #: (N,), int64.
    ids: Tensor
    #: Scalar; grows with the distance between latents and codes.
    loss: Tensor


def quantize_straight_through(
    latents: Tensor, codebook: Codebook, *, beta: float = 0.25, beta_placement: BetaPlacement = "paper"
) -> Quantization:
    """Replace latents by their nearest codes; the gradient of the codes goes to the latents unchanged.

    The loss is mean((z_q - sg z)^2) + beta mean((sg z_q - z)^2): "paper" is van den Oord et al.,
    https://arxiv.org/abs/1711.00937, equation 3, and LlamaGen's code; "code" puts beta on the first term, as
    taming-transformers does by default. With the cosine metric z is normalised first (LlamaGen,
    tokenizer_image/vq_model.py).

    Args:
        latents: (N, C).
        codebook: K rows.
        beta: weight of one of the two terms of the loss.
        beta_placement: the term that ``beta`` weighs.
    """
    latents = comparable(latents, codebook)
    ids = codebook.nearest(latents)
    rows = F.embedding(ids, codebook.rows())
    pull_rows, pull_latents = F.mse_loss(rows, latents.detach()), F.mse_loss(latents, rows.detach())
    loss = pull_rows + beta * pull_latents if beta_placement == "paper" else beta * pull_rows + pull_latents
    return Quantization(latents + (rows - latents).detach(), ids, loss)


def quantize_by_index(
    latents: Tensor, codebook: Codebook, *, beta: float = 0.25, beta_placement: BetaPlacement = "paper"
) -> Quantization:
    """Replace latents by their nearest codes (index backpropagation); the gradient reaches every code by a softmax.

    The one-hot vector p of the id is made differentiable by the softmax s of all scores, p + s - sg s, so each
    step moves the whole codebook. With z_q the codes that carry this gradient and e the plain rows, the loss is
    mean((z_q - z)^2) + mean((sg e - z)^2) + beta mean((e - sg z)^2) for "code", which is SEED-Voken's quantize.py;
    "paper" has beta on the second term, where https://arxiv.org/abs/2412.02692 and the usual commitment loss have it.

    The N x K softmax stays in memory until the backward pass: 4 N K bytes, which is 67 MB for four pictures of 256 ids
    each and K = 16384.

    Args:
        latents: (N, C).
        codebook: K rows.
        beta: weight of one of the last two terms of the loss.
        beta_placement: the term that ``beta`` weighs.
    """
    latents = comparable(latents, codebook)
    rows = codebook.rows()
    ids = codebook.nearest(latents)
    plain = F.embedding(ids, rows)
    soft = affinity(latents, codebook).softmax(-1) @ rows.detach()
    # The value is that of the plain rows. Their gradient reaches the codebook, that of the softmax reaches the scores.
    codes = plain + (soft - soft.detach())
    pull_rows, pull_latents = F.mse_loss(plain, latents.detach()), F.mse_loss(latents, plain.detach())
    pull = pull_rows + beta * pull_latents if beta_placement == "paper" else beta * pull_rows + pull_latents
    return Quantization(codes, ids, F.mse_loss(codes, latents) + pull)


def comparable(latents: Tensor, codebook: Codebook) -> Tensor:
    """Return latents (..., C) in the form in which they are compared with codes: float32, unit norm for cosine."""
    latents = latents.float()
    return F.normalize(latents, dim=-1) if codebook.metric == "cosine" else latents


def affinity(latents: Tensor, codebook: Codebook) -> Tensor:
    """Return scores (N, K), higher for nearer codes: inner products for the dot metric, else minus squared distance."""
    latents, rows = comparable(latents, codebook), codebook.rows()
    products: Tensor = latents @ rows.T
    if codebook.metric == "dot":
        return products
    distances: Tensor = latents.square().sum(-1, keepdim=True) + rows.square().sum(-1) - 2 * products
    return -distances


def entropy_loss(affinity: Tensor, *, temperature: float = 0.01) -> Tensor:
    """Return the mean entropy of each latent's code, minus the entropy of the mean over the latents of all processes.

    It is small when every latent is sure of its code and all codes are in use.

    Args:
        affinity: (N, K) scores.
        temperature: divisor of the scores before the softmax.

    Source: Yu et al., https://arxiv.org/abs/2310.05737, equation 5; the constant 1e-5 as in LlamaGen and SEED-Voken.
    """
    logarithms = (affinity / temperature).log_softmax(-1)
    shares = logarithms.exp()
    each = -(shares * logarithms).sum(-1).mean()
    mean = mean_over_processes(shares.mean(0))
    return each + (mean * (mean + 1e-5).log()).sum()


def count_ids(ids: Tensor, size: int) -> Tensor:
    """Return how often each of ``size`` ids occurs in all processes, (K,) int64."""
    counts = ids.reshape(-1).bincount(minlength=size)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(counts)
    return counts


class CodeRestart(nn.Module):
    """Restart of unused codes: every ``period`` steps, each code that did not occur is set to a latent of the batch.

    Source: https://arxiv.org/abs/2005.00341, section 3.2 ("random restart").

    Args:
        size: codebook size K.
        period: number of steps between two restarts.
    """

    counts: Tensor
    last: Tensor

    def __init__(self, size: int, period: int = 100) -> None:
        super().__init__()
        self.period = period
        self.register_buffer("counts", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("last", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, codebook: Codebook, latents: Tensor, step: int) -> None:
        """Restart unused codes at every ``period``-th step. Call this before the search of each step.

        Args:
            codebook: codebook whose rows are replaced, by the same ones in every process.
            latents: (N, C) of this process, from :func:`comparable`.
            step: number of the step; it seeds the choice of latents.
        """
        if step % self.period or step == self.last:  # equal to last: another micro-batch of the same step
            return
        self.last.fill_(step)
        unused = (self.counts == 0).nonzero()[:, 0]
        everywhere = gather(latents.detach())
        choice = torch.randperm(len(everywhere), generator=torch.Generator().manual_seed(step))[: len(unused)]
        codebook.weight[unused[: len(choice)]] = everywhere[choice.to(everywhere.device)]
        self.counts.zero_()

    def add(self, counts: Tensor) -> None:
        """Add the occurrences (K,) of a step's ids, summed over all processes."""
        self.counts += counts


def gather(x: Tensor) -> Tensor:
    """Return the rows (P N, ...) of x (N, ...) from all P processes, in their order. No gradient."""
    if not (dist.is_available() and dist.is_initialized()):
        return x
    rows = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, x.contiguous())
    return torch.cat(rows)


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
