"""A training task as one value, with everything that :func:`toklip_core.training.fit` needs to train it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils.data import default_collate

from toklip_core.training.optimizers import ParameterGroup, trainable
from toklip_core.training.order import shuffled
from toklip_core.training.sources import Samples


class Losses(NamedTuple):
    """Result of an objective or a contrast: scalars by name, and features for a contrast."""

    #: Losses; their sum is minimised, and one that is not finite stops the run.
    losses: Mapping[str, Tensor]
    #: Further scalars to log.
    metrics: Mapping[str, Tensor] = {}
    #: Features for the contrast: (b, ...) with a row per sample of the micro-batch, or 0-dim for all samples.
    features: Mapping[str, Tensor] = {}


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation during the run, for the log."""

    figures: dict[str, float]
    #: Name -> pictures (N, 3, H, W) in [-1, 1].
    pictures: dict[str, Tensor] = field(default_factory=dict)


class Task(ABC):
    """Model, data and losses of a training, for :func:`fit`.

    A task sets ``model``, ``samples`` and ``settings``, and defines :meth:`objective` and :meth:`export`. All other
    members are optional and have defaults here; None means that the task has no such thing.

    Frozen networks, such as a tokenizer or a teacher, are attributes of the task and never part of ``model``:
    :meth:`prepare` calls them.
    """

    # Members of every task.

    #: All trainable weights. Parameters without ``requires_grad`` stay frozen, and are not saved.
    model: nn.Module
    #: Training data; an epoch is one pass over it.
    samples: Samples[Any]
    #: JSON data with everything that the weights depend on beside ``run`` and the number of samples. A run with other
    #: settings is not resumed. Models and token stores are recorded by checksums, other files by their paths alone.
    settings: Mapping[str, Any]

    @abstractmethod
    def objective(self, model: nn.Module, prepared: Any, step: int) -> Losses:  # noqa: ANN401 - what `prepare` returns
        """Return losses that are means over samples (or see :attr:`loss_counts`), and features for the contrast.

        Args:
            model: ``self.model``, wrapped. Call it as ``model(...)``, so that hooks of DDP and FSDP run; the autocast
                of ``run.precision`` is on.
            prepared: what :meth:`prepare` returned. With a contrast and ``run.accumulate`` it comes twice: first
                without gradients, when only the features count, then with them.
            step: number of finished steps.
        """

    @abstractmethod
    def export(self, tensors: dict[str, Tensor], folder: Path) -> None:
        """Write the model folder at the end of the run; called in the first process.

        Args:
            tensors: state dict of the product, on the CPU, averaged if the run averages.
            folder: exists, and is empty.
        """

    # Members about data.

    #: (size, seed, epoch) -> permutation of the samples.
    order: Callable[[int, int, int], Tensor] = staticmethod(shuffled)
    #: Whether a sample is read together with those beside it, as a row of a token store with its group. Each of several
    #: processes then takes samples of a batch that lie together.
    grouped: bool = False
    #: Function from samples to a batch, for workers. It is not a method, because the model would be sent there too.
    collate: Callable[[list[Any]], Any] = staticmethod(default_collate)

    def prepare(self, batch: Any) -> Any:  # noqa: ANN401 - whatever the collate made
        """Return what frozen networks compute from a batch; called once per micro-batch, without gradients.

        Args:
            batch: collated samples, on the device of the model; the autocast of ``run.precision`` is on.
        """
        return batch

    # Members about optimization.

    #: Function from the features of this process's micro-batches, in float32, to losses between samples. It gathers
    #: features over processes itself; see :mod:`toklip_core.training.losses`. It is exact with ``run.accumulate`` too,
    #: at the cost of one more forward pass without gradients. Memory holds prepared inputs and features of the whole
    #: batch, but activations of only one micro-batch.
    contrast: Callable[[Mapping[str, Tensor]], Losses] | None = None
    #: Function from a prepared micro-batch to the number of terms of this process, 0-dim, by name of a loss. It is for
    #: losses that are means over something that samples have different numbers of, such as tokens: with
    #: ``run.accumulate``, micro-batches count by these numbers. A loss that it does not name is a mean over samples.
    #: Memory holds the prepared inputs of the whole batch.
    loss_counts: Callable[[Any], Mapping[str, Tensor]] | None = None
    #: Whether some parameters may get no gradient in some steps, which DDP must know.
    unused_parameters: bool = False

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """Return groups of the model's parameters; every trainable one is in exactly one of them."""
        return [ParameterGroup(names=frozenset(trainable(self.model)))]

    def after_step(self, model: nn.Module) -> None:  # noqa: B027 - by default there is nothing to do
        """Change parameters, such as by clamping, after each step of the optimizer; gradients are off.

        FSDP 2 turns parameters into DTensors and accepts none without a dimension; use (1,) for a scalar.
        """

    def replaced_rows(self) -> Mapping[str, Tensor]:
        """Return the rows of the product's weights that the step has set anew, int64, by name of the weight.

        It is called once after each step. With ``run.ema_decay``, the average of such a row starts again from its new
        value, because the old one described another code.
        """
        return {}

    # Members about results.

    #: Name of the submodule of ``model`` that is averaged, evaluated and exported; "" means the whole model.
    product: str = ""
    #: Function from the product in evaluation mode, with averaged weights, to figures; called in every process.
    #: It may be called before the first batch is prepared, so it moves the frozen networks that it uses itself.
    evaluate: Callable[[nn.Module], Evaluation] | None = None
    #: Function from the product, as for ``evaluate``, to a function that raises ValueError unless the exported model in
    #: a folder computes the same. The outer one is called in every process, the inner one in the first process.
    comparison: Callable[[nn.Module], Callable[[Path], None]] | None = None
