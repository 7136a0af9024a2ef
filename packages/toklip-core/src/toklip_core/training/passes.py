"""The forward and backward passes of one step, over micro-batches and processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from toklip_core.config import RunConfig
from toklip_core.training.cpu_attention import CPUAttention
from toklip_core.training.losses import mean_over_processes
from toklip_core.training.order import derived_seed
from toklip_core.training.task import Losses, Task

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Passes:
    """The forward and backward passes of a step over its micro-batches."""

    accelerator: Accelerator
    model: nn.Module
    task: Task
    run: RunConfig

    def backward(self, batches: Iterator[Any], step: int) -> Iterator[Losses]:
        """Add the gradients of a step to the parameters; yield the losses to log."""
        count, contrast = self.run.accumulate, self.task.contrast
        inputs: Iterator[Any] = (self._prepare(x, step, micro) for micro, x in enumerate(islice(batches, count)))
        cached: list[dict[str, Tensor]] = []
        weights: list[dict[str, Tensor]] = [{} for _ in range(count)]
        if count > 1 and (contrast is not None or self.task.loss_counts is not None):
            kept = [*inputs]  # read twice, so that frozen networks run only once
            inputs = iter(kept)
            if self.task.loss_counts is not None:
                weights = _weights([self.task.loss_counts(prepared) for prepared in kept])
            if contrast is not None:
                between, cached = self._cache(contrast, kept, step)
                yield between
        for micro, prepared in enumerate(inputs):
            with nullcontext() if micro == count - 1 else self.accelerator.no_sync(self.model):
                result = _weighted(self._forward(prepared, step, micro), weights[micro])
            losses = [loss / count for loss in result.losses.values()]
            if cached:
                # Only the gradient of these products matters: it is that of the contrast through this micro-batch.
                features, gradients = _float32(result.features), cached[micro]
                losses += [(features[name] * x).sum() for name, x in gradients.items() if features[name].requires_grad]
            elif contrast is not None:
                between = contrast(_float32(result.features))
                losses += between.losses.values()
                yield between
            with CPUAttention():  # for what gradient checkpointing computes again
                self.accelerator.backward(torch.stack(losses).sum())
            yield result

    def _prepare(self, batch: Any, step: int, micro: int) -> Any:  # noqa: ANN401 - whatever the collate made
        batch = _to_device(batch, self.accelerator.device)
        self._seed(step, micro)
        with torch.no_grad(), self.accelerator.autocast():
            return self.task.prepare(batch)

    def _forward(self, prepared: Any, step: int, micro: int) -> Losses:  # noqa: ANN401 - whatever the task prepared
        self._seed(step, micro)
        with CPUAttention(), self.accelerator.autocast():
            return self.task.objective(self.model, prepared, step)

    def _seed(self, step: int, micro: int) -> None:
        # After loading the batch, because a DataLoader draws from the global generator.
        torch.manual_seed(derived_seed(self.run.seed, step, micro, self.accelerator.process_index))

    def _cache(
        self, contrast: Callable[[Mapping[str, Tensor]], Losses], inputs: Sequence[Any], step: int
    ) -> tuple[Losses, list[dict[str, Tensor]]]:
        """Return the contrast of the whole batch, and its gradients to the features of each micro-batch.

        This is GradCache, https://arxiv.org/abs/2101.06983: a first pass without a graph computes the features. It uses
        the random numbers and buffers of the second pass, so dropout agrees and running statistics count samples once.
        """
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        with torch.no_grad():
            parts = [self._forward(prepared, step, micro).features for micro, prepared in enumerate(inputs)]
            for name, buffer in self.model.named_buffers():
                buffer.copy_(buffers[name])
        whole_batch = {n: torch.cat([part[n] for part in parts]) if x.ndim else x for n, x in parts[-1].items()}
        features = {n: x.detach().requires_grad_(x.is_floating_point()) for n, x in _float32(whole_batch).items()}
        between = contrast(features)
        leaves = {name: x for name, x in features.items() if x.requires_grad}
        gradients = torch.autograd.grad([*between.losses.values()], [*leaves.values()], materialize_grads=True)
        cached: list[dict[str, Tensor]] = [{} for _ in parts]
        for name, gradient in zip(leaves, gradients, strict=True):
            if gradient.ndim:
                rows = gradient.split_with_sizes([len(part[name]) for part in parts])
                cached = [{**before, name: own} for before, own in zip(cached, rows, strict=True)]
            else:  # once, in the last micro-batch, whose backward pass averages over processes
                cached[-1][name] = gradient
        return between, cached


def _weights(counts: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Return the factor on each loss of each micro-batch that makes their mean that of the whole batch."""
    names = [*counts[0]]
    each = mean_over_processes(torch.stack([torch.stack([count[name] for name in names]) for count in counts]).float())
    whole = each.mean(0)  # 0 only if a loss has no terms at all
    return [dict(zip(names, row / whole.where(whole > 0, 1), strict=True)) for row in each]


def _weighted(result: Losses, weights: Mapping[str, Tensor]) -> Losses:
    losses = {name: loss * weights[name] if name in weights else loss for name, loss in result.losses.items()}
    return result._replace(losses=losses)


def _float32(features: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # Gradients of a large batch, which are not scaled yet, may be too small for 16 bits.
    return {name: x.float() if x.is_floating_point() else x for name, x in features.items()}


def _to_device(batch: Any, device: torch.device) -> Any:  # noqa: ANN401 - whatever the collate made
    from accelerate.utils import send_to_device

    return send_to_device(batch, device, non_blocking=True)
