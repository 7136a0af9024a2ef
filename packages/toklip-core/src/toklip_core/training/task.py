"""A training task as one value: everything that :func:`toklip_core.training.fit` needs to know about what it trains."""

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
    """What an objective, or a contrast, returns: scalars by name, and what a contrast needs."""

    #: Their sum is minimised. A value that is not finite stops the run.
    losses: Mapping[str, Tensor]
    #: Logged beside the losses.
    metrics: Mapping[str, Tensor] = {}
    #: For the contrast: (b, ...) with a row for each sample of the micro-batch, or 0-dim, the same for all samples.
    features: Mapping[str, Tensor] = {}


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation during the run gives to the log."""

    figures: dict[str, float]
    #: Name -> (N, 3, H, W) in [-1, 1].
    pictures: dict[str, Tensor] = field(default_factory=dict)


class Task(ABC):
    """What a run trains, on which data and by which losses: the value that :func:`fit` takes.

    A task sets ``model``, ``samples`` and ``settings``, and defines :meth:`objective` and :meth:`export`. Every other
    member is optional and has the default that stands here; None means that the task has no such thing.

    Frozen networks, such as a tokenizer or a teacher, are attributes of the task and never part of ``model``:
    :meth:`prepare` calls them.
    """

    # What every task has.

    #: All trainable weights. Parameters without ``requires_grad`` stay frozen, and are not saved.
    model: nn.Module
    #: Training data; an epoch is one pass over it.
    samples: Samples[Any]
    #: JSON data, all that the weights depend on beside ``run`` and the number of samples: a run with other settings
    #: is not resumed.
    settings: Mapping[str, Any]

    @abstractmethod
    def objective(self, model: nn.Module, prepared: Any, step: int) -> Losses:  # noqa: ANN401 - what `prepare` returns
        """Return losses that are means over samples, and features for the contrast.

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

    # What feeds the model.

    #: (size, seed, epoch) -> permutation of the samples.
    order: Callable[[int, int, int], Tensor] = staticmethod(shuffled)
    #: Samples -> batch, in a worker: no method of the task, with which the model would travel there.
    collate: Callable[[list[Any]], Any] = staticmethod(default_collate)

    def prepare(self, batch: Any) -> Any:  # noqa: ANN401 - whatever the collate made
        """Return what frozen networks compute from a batch; called once per micro-batch, without gradients.

        Args:
            batch: collated samples, on the device of the model; the autocast of ``run.precision`` is on.
        """
        return batch

    # What trains it.

    #: Features of all micro-batches of this process, in float32 -> losses between samples, gathered over processes by
    #: itself; see :mod:`toklip_core.training.losses`. Exact with ``run.accumulate`` too, for one more forward pass
    #: without gradients. Prepared inputs and features of the whole batch are held, activations of one micro-batch at a
    #: time.
    contrast: Callable[[Mapping[str, Tensor]], Losses] | None = None
    #: Whether some parameters may get no gradient in some steps, which DDP must be told.
    unused_parameters: bool = False

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """Return groups of the model's parameters; every trainable one is in exactly one of them."""
        return [ParameterGroup(names=frozenset(trainable(self.model)))]

    def after_step(self, model: nn.Module) -> None:  # noqa: B027 - by default there is nothing to do
        """Change parameters, such as by clamping, after each step of the optimizer; gradients are off.

        FSDP 2 makes a parameter a DTensor, and takes none without a dimension: (1,) for a scalar.
        """

    # What comes out.

    #: Name of the submodule of ``model`` that is the result: averaged, evaluated, exported. "" is all of it.
    product: str = ""
    #: Product in eval mode, with averaged weights -> figures; called in every process.
    evaluate: Callable[[nn.Module], Evaluation] | None = None
    #: Product, as ``evaluate`` gets it -> what raises a ValueError unless the model in the folder that ``export`` wrote
    #: computes the same. The first is called in every process, the second in the first one.
    comparison: Callable[[nn.Module], Callable[[Path], None]] | None = None
