"""Training tasks made of functions, for tests of the loop."""

from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from toklip_core.training import Losses, ParameterGroup, Samples, Task
from torch import Tensor, nn


class ToyTask(Task):
    """A task whose other members are given by name; ``groups`` are its parameter groups, if there are any.

    It exports a state dict as it is.
    """

    def __init__(self, model: nn.Module, samples: Samples[Any], objective: Any, **members: Any) -> None:
        self.model, self.samples, self.settings = model, samples, {}
        self._objective = objective
        self._groups: list[ParameterGroup] = members.pop("groups", [])
        vars(self).update(members)

    def objective(self, model: nn.Module, prepared: Any, step: int) -> Losses:
        return self._objective(model, prepared, step)

    def export(self, tensors: dict[str, Tensor], folder: Path) -> None:
        save_file(tensors, folder / "model.safetensors")

    def parameter_groups(self) -> list[ParameterGroup]:
        return self._groups or [*super().parameter_groups()]
