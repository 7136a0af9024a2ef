"""From latents to codes in training: the gradients and losses of each quantizer, and how codebooks are used.

Shape letters: N positions of the batch in this process, Q levels, K codebook size, C codebook dim. Latents are (N, C).

All of it computes in float32, whatever autocast says. What is a mean over the batch alone is left to the average of
gradients over processes; what is not (entropy, use of the codebook) is averaged over processes here.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from toklip_core.evaluation import CodebookUse, codebook_use
from toklip_core.training import mean_over_processes
from torch import Tensor, nn

from toklip_vq.quantizers import BitQuantizer, ScalarQuantizer
from toklip_vq.training.settings import LossConfig
from toklip_vq.vqgan import VQGAN, Codebook, ResidualCodebook

#: Term that the factor beta weighs: the one in the paper, or the one in IBQ's public code.
BetaPlacement = Literal["paper", "code"]


class Quantization(NamedTuple):
    """The codes and ids of latents, and the loss that trains both."""

    #: (N, C): with a gradient to the latents and, for index backpropagation, to the codebook.
    codes: Tensor
    #: (N, Q), int64.
    ids: Tensor
    #: Scalar; grows with the distance between latents and codes.
    loss: Tensor


def quantize(latents: Tensor, vqgan: VQGAN, config: LossConfig) -> Quantization:
    """Replace latents (N, C) by codes, in the way of the VQGAN's quantizer."""
    codebook, kind = vqgan.codebook, vqgan.config.quantizer
    beta, placement = config.beta, config.beta_placement
    if isinstance(codebook, BitQuantizer):
        return quantize_bits(latents, codebook, beta=beta)
    if isinstance(codebook, ScalarQuantizer):
        return quantize_scalars(latents, codebook)
    if isinstance(codebook, ResidualCodebook):
        return quantize_residual(latents, codebook, beta=beta, beta_placement=placement)
    quantize_one = quantize_by_index if kind == "ibq" else quantize_straight_through
    return quantize_one(latents, codebook, beta=beta, beta_placement=placement)


def unquantized(latents: Tensor, vqgan: VQGAN) -> Tensor:
    """Return latents (N, C) as the decoder reads them before quantization starts: float32, in the range of codes."""
    codebook = vqgan.codebook
    if isinstance(codebook, ScalarQuantizer):
        return codebook.bounded(latents)
    return comparable(latents, codebook) if isinstance(codebook, Codebook) else latents.float()


def entropy(latents: Tensor, vqgan: VQGAN, *, temperature: float) -> Tensor:
    """Return the entropy loss of latents (N, C), a scalar, for a quantizer that has one: vq, ibq or lfq.

    Raises:
        ValueError: the quantizer is another.
    """
    if isinstance(vqgan.codebook, Codebook):
        return entropy_loss(affinity(latents, vqgan.codebook), temperature=temperature)
    if isinstance(vqgan.codebook, BitQuantizer):
        return bit_entropy_loss(latents, temperature=temperature)
    raise ValueError(
        f"got the quantizer {vqgan.config.quantizer!r}, which has no entropy loss; set entropy_weight = 0, or take "
        "vq, ibq or lfq"
    )


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
    return Quantization(latents + (rows - latents).detach(), ids[:, None], loss)


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
    return Quantization(codes, ids[:, None], F.mse_loss(codes, latents) + pull)


def quantize_residual(
    latents: Tensor, codebook: ResidualCodebook, *, beta: float = 0.25, beta_placement: BetaPlacement = "paper"
) -> Quantization:
    """Replace latents by sums of codes: each level takes the code nearest to what the levels before it leave.

    The loss is the mean over the levels of that of :func:`quantize_straight_through`.

    Args:
        latents: (N, C).
        codebook: Q codebooks.
        beta: weight of one of the two terms of the loss.
        beta_placement: the term that ``beta`` weighs.

    Source: Lee et al., https://arxiv.org/abs/2203.01941, section 3.1.
    """
    latents = latents.float()
    rest = latents
    levels: list[Quantization] = []
    for level in codebook:
        assert isinstance(level, Codebook)
        levels.append(quantize_straight_through(rest, level, beta=beta, beta_placement=beta_placement))
        rest = rest - F.embedding(levels[-1].ids[:, 0], level.weight).detach()
    codes = latents - rest.detach()
    loss = torch.stack([level.loss for level in levels]).mean()
    return Quantization(codes, torch.cat([level.ids for level in levels], dim=-1), loss)


def quantize_bits(latents: Tensor, quantizer: BitQuantizer, *, beta: float = 0.25) -> Quantization:
    """Replace latents by their signs (LFQ); the gradient of the codes goes to the latents unchanged.

    The loss is beta mean((sg q - z)^2): there are no codes that could move.

    Args:
        latents: (N, C).
        quantizer: its ids are the signs.
        beta: weight of the loss.

    Source: Yu et al., https://arxiv.org/abs/2310.05737, section 3.1.
    """
    latents = latents.float()
    ids, _ = quantizer.search(latents)
    codes = quantizer.embedding(ids)
    return Quantization(latents + (codes - latents).detach(), ids, beta * F.mse_loss(latents, codes))


def quantize_scalars(latents: Tensor, quantizer: ScalarQuantizer) -> Quantization:
    """Replace each channel of latents by the nearest of its values (FSQ); the gradient passes the rounding unchanged.

    The loss is 0: the values are fixed, and a tanh keeps latents among them.

    Args:
        latents: (N, C).
        quantizer: its ids are the rounded values.

    Source: Mentzer et al., https://arxiv.org/abs/2309.15505.
    """
    ids, _ = quantizer.search(latents)
    bounded = quantizer.bounded(latents)
    return Quantization(bounded + (quantizer.embedding(ids) - bounded).detach(), ids, bounded.new_zeros(()))


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


def bit_entropy_loss(latents: Tensor, *, temperature: float = 0.01) -> Tensor:
    """Return the loss of :func:`entropy_loss` for the signs of latents (N, C), bit by bit, without a table of codes.

    The entropy of each latent's code is the sum of those of its bits, exactly. The entropy of the mean is replaced by
    the sum of those of the mean bits, which it equals if bits are independent, and never exceeds.

    Source: Zhao et al., https://arxiv.org/abs/2406.07548, section 3.2, with groups of one bit.
    """
    # Minus the squared distance to the code with bit 1, less that to the code with bit 0, is 4 z.
    shares = torch.sigmoid(4 * latents.float() / temperature)
    each = _bit_entropy(shares).sum(-1).mean()
    return each - _bit_entropy(mean_over_processes(shares.mean(0))).sum()


def _bit_entropy(shares: Tensor) -> Tensor:
    """Return the entropy of bits that are 1 with these probabilities; the constant 1e-5 as in ``entropy_loss``."""
    return -(shares * (shares + 1e-5).log() + (1 - shares) * (1 - shares + 1e-5).log())


def count_ids(ids: Tensor, size: int) -> Tensor:
    """Return how often each of ``size`` ids occurs in all processes, (K,) int64."""
    counts = ids.reshape(-1).bincount(minlength=size)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(counts)
    return counts


def use_of_batch(ids: Tensor, sizes: tuple[int, ...]) -> list[CodebookUse]:
    """Return the use of each level's codebook by ids (N, Q) of all processes, without a count for every code."""
    levels = zip(gather(ids).unbind(-1), sizes, strict=True)
    return [codebook_use(torch.unique(level, return_counts=True)[1], size) for level, size in levels]


#: Number of steps between two restarts of unused codes.
RESTART_PERIOD = 100


class CodeRestart(nn.Module):
    """Restart of unused codes: every ``period`` steps, each code that did not occur is set to a latent of the batch.

    Source: https://arxiv.org/abs/2005.00341, section 3.2 ("random restart").

    Args:
        size: codebook size K.
        period: number of steps between two restarts.
    """

    counts: Tensor
    last: Tensor

    def __init__(self, size: int, period: int = RESTART_PERIOD) -> None:
        super().__init__()
        self.period = period
        self.register_buffer("counts", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("last", torch.zeros((), dtype=torch.int64))

    def is_due(self, step: int) -> bool:
        """Return whether codes restart at this step, and did not in another of its micro-batches."""
        return step % self.period == 0 and step != int(self.last)

    @torch.no_grad()
    def forward(self, codebook: Codebook, latents: Tensor, step: int) -> Tensor:
        """Restart unused codes at every ``period``-th step and return them, (R,). Call this before each step's search.

        Args:
            codebook: codebook whose rows are replaced, by the same ones in every process.
            latents: (N, C) of this process, from :func:`comparable`.
            step: number of the step; it seeds the choice of latents.
        """
        if not self.is_due(step):
            return self.counts.new_zeros(0)
        self.last.fill_(step)
        unused = (self.counts == 0).nonzero()[:, 0]
        everywhere = gather(latents.detach())
        choice = torch.randperm(len(everywhere), generator=torch.Generator().manual_seed(step))[: len(unused)]
        restarted = unused[: len(choice)]
        codebook.weight[restarted] = everywhere[choice.to(everywhere.device)]
        self.counts.zero_()
        return restarted

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
