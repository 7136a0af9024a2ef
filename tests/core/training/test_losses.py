"""Contrast and distillation: numbers of the public code, parity with open_clip, and two processes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from toklip_core.training import (
    mean_over_processes,
    pooled_distillation,
    sigmoid_contrast,
    softmax_contrast,
    token_distillation,
)
from torch import Tensor

from tests.support.processes import run_together

#: Inputs and losses of TokLIP's src/open_clip/loss.py; weights of 1000 and 10 are in the losses.
PUBLISHED = {
    name: torch.from_numpy(value)
    for name, value in np.load(Path(__file__).parents[2] / "goldens/losses.npz").items()
}
IMAGE, TEXT = PUBLISHED["image_features"], PUBLISHED["text_features"]
SCALE, BIAS = PUBLISHED["logit_scale"].float(), PUBLISHED["logit_bias"].float()


def features(rows: int = 8, width: int = 16) -> list[Tensor]:
    """Pictures and texts: unit norm, and leaves of the graph."""
    noise = torch.randn(2, rows, width, generator=torch.Generator().manual_seed(1))
    return [one.clone().requires_grad_() for one in F.normalize(noise, dim=-1)]


def scalar(value: float) -> Tensor:
    return torch.tensor(value, requires_grad=True)


@pytest.mark.parametrize(
    ("names", "mine"),
    [
        (
            ["loss_clip", "loss_distill_contrastive_loss", "loss_simple_contrastive_loss"],
            lambda: softmax_contrast(IMAGE, TEXT, SCALE),
        ),
        (["loss_siglip"], lambda: sigmoid_contrast(IMAGE, TEXT, SCALE, BIAS)),
        (
            ["loss_distill_distill_loss", "loss_simple_distill_loss"],
            lambda: 1000 * pooled_distillation(IMAGE, PUBLISHED["teacher_image_features"]),
        ),
        (
            ["loss_distill_token_distill_loss"],
            lambda: 10 * token_distillation(PUBLISHED["image_tokens"], PUBLISHED["teacher_image_tokens"]),
        ),
    ],
    ids=["softmax", "sigmoid", "pooled", "token"],
)
def test_losses_have_the_published_values(names: list[str], mine: Callable[[], Tensor]):
    for name in names:
        torch.testing.assert_close(mine(), PUBLISHED[name].float(), rtol=0, atol=1e-4, msg=name)


def test_softmax_contrast_and_its_gradients_are_open_clips():
    from open_clip.loss import ClipLoss  # here: the processes below import this file, and can do without

    one, other = [*features(), scalar(14.3)], [*features(), scalar(14.3)]
    mine, theirs = softmax_contrast(*one), ClipLoss()(*other)
    assert_same([mine, *torch.autograd.grad(mine, one)], [theirs, *torch.autograd.grad(theirs, other)])


def test_sigmoid_contrast_and_its_gradients_are_open_clips():
    from open_clip.loss import SigLipLoss

    one, other = [[*features(), scalar(14.3), scalar(-10.0)] for _ in range(2)]
    mine, theirs = sigmoid_contrast(*one), SigLipLoss()(*other)
    assert_same([mine, *torch.autograd.grad(mine, one)], [theirs, *torch.autograd.grad(theirs, other)])


def assert_same(mine: list[Tensor], theirs: list[Tensor]) -> None:
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_pooled_distillation_weighs_the_cosine_by_two_over_the_width():
    student, teacher = features(width=1152)
    cosine = F.cosine_similarity(student, teacher)
    torch.testing.assert_close(pooled_distillation(student, teacher), (2 * (1 - cosine) / 1152).mean())


@pytest.mark.parametrize("distillation", [pooled_distillation, token_distillation])
def test_no_gradient_flows_into_the_teacher(distillation: Callable[[Tensor, Tensor], Tensor]):
    student, teacher = features()
    distillation(student, teacher).backward()
    assert student.grad is not None and teacher.grad is None


def test_a_teacher_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 9, 8\) from the student and \(2, 4, 8\) from the teacher; use a"):
        token_distillation(torch.zeros(2, 9, 8), torch.zeros(2, 4, 8))


@pytest.mark.parametrize(
    "loss",
    [
        lambda image, text: softmax_contrast(image, text, 100.0),
        lambda image, text: sigmoid_contrast(image, text, 100.0, -10.0),
        pooled_distillation,
        token_distillation,
    ],
    ids=["softmax", "sigmoid", "pooled", "token"],
)
def test_autocast_changes_no_number(loss: Callable[[Tensor, Tensor], Tensor]):
    image, text = features()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = loss(image, text)
    assert under.dtype == torch.float32
    assert torch.equal(under, loss(image, text))


def test_half_precision_features_are_taken_as_they_are():
    halves = [one.detach().bfloat16() for one in features()]
    assert torch.equal(softmax_contrast(*halves, 14.3), softmax_contrast(*(one.float() for one in halves), 14.3))


def values_and_gradients(rows: slice = slice(None)) -> dict[str, Tensor]:
    """Both contrasts of these rows, each with its gradients to pictures, texts, scale and bias."""
    found: dict[str, Tensor] = {}
    for contrast, shared in ((softmax_contrast, (14.3,)), (sigmoid_contrast, (14.3, -10.0))):
        inputs = [one.detach()[rows].requires_grad_() for one in features()] + [scalar(value) for value in shared]
        value = contrast(*inputs)
        found[contrast.__name__] = value.detach()
        for number, gradient in enumerate(torch.autograd.grad(value, inputs)):
            found[f"{contrast.__name__}/{number}"] = gradient
    return found


def in_a_process(folder: Path) -> None:
    dist.init_process_group("gloo")
    half = slice(4 * dist.get_rank(), 4 * dist.get_rank() + 4)
    torch.save(values_and_gradients(half), folder / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()


def test_two_processes_have_the_values_and_the_gradients_of_one(tmp_path: Path):
    """The mean over processes is taken here as DDP takes it of gradients: each row's is in the process that has it."""
    run_together(in_a_process, tmp_path)
    one, pair = values_and_gradients(), [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, expected in one.items():
        of_rows = expected.ndim > 0
        mine = torch.cat([part[name] for part in pair]) / 2 if of_rows else (pair[0][name] + pair[1][name]) / 2
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-7, msg=name)


def test_alone_a_process_is_its_own_mean():
    x = torch.randn(3, requires_grad=True)
    assert mean_over_processes(x) is x
