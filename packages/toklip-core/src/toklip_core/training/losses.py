"""Losses of a TokLIP: contrast with texts across processes, and distillation from a teacher.

Shape letters: B samples of one process, P processes, N tokens, D width.

A contrast compares every picture with every text of the whole batch. Each process has its own B rows, gathers the rows
of the other processes with their gradients, and returns the mean over its own rows. The mean of these values over
processes, and DDP's or FSDP's mean of the gradients, equal those of the whole batch in one process.

Losses are returned without weights. The published weights are

- 1 for the contrast;
- 1000 for :func:`pooled_distillation`: for unit vectors of width D the mean squared error is 2 (1 - cos) / D, so 1000
  weighs 1 - cos by 2000 / D, which is 1.74 at D = 1152;
- 10 for :func:`token_distillation`: two unrelated tokens of unit variance have a mean squared error of 2, from where
  the loss starts near 20; at D = 1152 a squared distance between two tokens weighs 10 / D = 0.0087.

Everything is computed in float32, also under autocast, because bfloat16 has only multiples of 0.5 near a logit of 100,
which a scale of 100 reaches.

Sources: softmax, CLIP, https://arxiv.org/abs/2103.00020, figure 3; sigmoid, SigLIP, https://arxiv.org/abs/2303.15343,
equation 1; distillation and its weights, TokLIP, https://arxiv.org/abs/2505.05422, official code
src/open_clip/loss.py (its contrast also computes logits of the teacher, which nothing uses).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def softmax_contrast(image: Tensor, text: Tensor, logit_scale: Tensor | float) -> Tensor:
    """Return the cross entropy, a scalar, of finding each picture's text and each text's picture in the whole batch.

    Args:
        image: (B, D), unit norm; row i belongs to row i of ``text``.
        text: (B, D), unit norm.
        logit_scale: factor on the cosines, the exponential of the parameter.

    >>> features = torch.eye(4)
    >>> float(softmax_contrast(features, features, 100.0)) < 1e-6
    True
    """
    with _float32(image):
        image, text = image.float(), text.float()
        all_images, all_texts = _gathered(torch.stack([image, text], dim=1)).unbind(1)
        own = torch.arange(len(image), device=image.device) + _rank() * len(image)
        to_texts = F.cross_entropy(logit_scale * image @ all_texts.T, own)
        to_images = F.cross_entropy(logit_scale * text @ all_images.T, own)
        return (to_texts + to_images) / 2


def sigmoid_contrast(
    image: Tensor, text: Tensor, logit_scale: Tensor | float, logit_bias: Tensor | float
) -> Tensor:
    """Return the binary cross entropy of all pairs of the whole batch, summed and divided by the number of pictures.

    Args:
        image: (B, D), unit norm; row i belongs to row i of ``text``.
        text: (B, D), unit norm.
        logit_scale: factor on the cosines, the exponential of the parameter.
        logit_bias: bias that is added to the products.
    """
    with _float32(image):
        image, text = image.float(), text.float()
        logits = logit_scale * image @ _gathered(text).T + logit_bias
        own = torch.arange(len(image), device=image.device)
        match = torch.full_like(logits, -1).index_put((own, own + _rank() * len(image)), logits.new_ones(()))
        return -F.logsigmoid(match * logits).sum() / len(image)


def pooled_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared error, a scalar, between unit vectors of pictures.

    Args:
        student: (B, D), unit norm.
        teacher: (B, D), unit norm; no gradient flows into it.

    >>> student, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> pooled_distillation(student, teacher)
    tensor(1.)
    """
    return _mean_squared_error(student, teacher)


def token_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared error, a scalar, between tokens.

    Args:
        student: (B, N, D), after the last norm.
        teacher: (B, N, D), after the last norm; no gradient flows into it.
    """
    return _mean_squared_error(student, teacher)


def mean_over_processes(x: Tensor) -> Tensor:
    """Return the mean of x (any shape) over all processes; differentiable under DDP's averaging of gradients.

    A loss that is not a mean over samples, such as the entropy of a batch's mean distribution, is the same on
    two processes as on one if its inputs are averaged by this.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return x
    mean: Tensor = _MeanOverProcesses.apply(x)
    return mean


def _mean_squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    if student.shape != teacher.shape:
        raise ValueError(
            f"got features of shape {tuple(student.shape)} from the student and {tuple(teacher.shape)} from the "
            "teacher; use a teacher of the same width and number of tokens"
        )
    with _float32(student):
        return F.mse_loss(student.float(), teacher.detach().float())


def _float32(like: Tensor) -> torch.autocast:
    return torch.autocast(like.device.type, enabled=False)


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _gathered(rows: Tensor) -> Tensor:
    """Return the rows (P B, ...) of all processes, from (B, ...) each, by rank. Every process must call this."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows)
    return gathered


class _Gather(torch.autograd.Function):
    """All-gather whose backward pass adds up the gradients of all processes' losses for each row.

    torch.distributed.nn.functional.all_gather does this too, but is deprecated.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:  # noqa: ANN401 - autograd's own context type
        gathered = rows.new_empty(dist.get_world_size() * len(rows), *rows.shape[1:])
        dist.all_gather_into_tensor(gathered, rows.detach().contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ANN401
        # All-reduce, because not every backend has reduce-scatter, and the rows are small.
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


class _MeanOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ANN401
        mean = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(mean)
        return mean / dist.get_world_size()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ANN401
        # The mean is its own adjoint: with the loss summed over processes, d/dx = sum of gradients / processes.
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient / dist.get_world_size()
