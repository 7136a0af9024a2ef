"""One checkpoint of a run: model, averages and optimizer after a number of steps.

    progress.json                                          step, figures, state of the scaler, names of the shards
    model.safetensors, average.safetensors,                unsharded model: written by the first process
    optimizer.safetensors
    shard-00001-model-00001-of-00001.safetensors, …        sharded model (FSDP): each process writes its own

Shards are written and read by torch.distributed.checkpoint, in its format without pickle. No process ever holds more
than its share, and any number of processes can read them.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from toklip_core.files import is_file, is_machine_error, one_line, read_json_object
from toklip_core.weights import is_finite

_PARTS = ("model", "average", "optimizer")


class TrainState(NamedTuple):
    """Contents of a checkpoint."""

    model: nn.Module
    optimizers: tuple[torch.optim.Optimizer, ...]
    #: Moving averages by parameter name; empty if the run keeps none.
    average: dict[str, Tensor]
    #: Gradient scaler of fp16.
    scaler: torch.amp.GradScaler | None


def is_sharded(model: nn.Module) -> bool:
    """Return whether each process has only its share of the weights."""
    from torch.distributed.tensor import DTensor

    return any(isinstance(weight, DTensor) for weight in model.parameters())


def whole(tensor: Tensor) -> Tensor:
    """Return the whole tensor of one that may be sharded over processes. Every process must take part."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def gather(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Gather whole tensors on the CPU of the process that keeps them. Every process must take part."""
    gathered: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        all_of_it = whole(tensor)
        if keep:
            gathered[name] = all_of_it.detach().cpu().clone(memory_format=torch.contiguous_format)
    return gathered


def first_anywhere(problem: str | None) -> str | None:
    """Return the first problem of any process, the same in all of them. Every process must take part."""
    if not (dist.is_available() and dist.is_initialized()):
        return problem
    problems: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    return next((each for each in problems if each is not None), None)


def saved_tensors(state: TrainState) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint, as ``model/name``, ``average/name`` and ``optimizer/parameter name/kind``.

    These are the tensors that training changes: trained parameters, persistent buffers, moments and step counts. Frozen
    weights and the settings of the optimizer come from the settings of the run.
    """
    names: dict[Tensor, str] = {weight: name for name, weight in state.model.named_parameters()}
    optimizer = {
        f"{names[weight]}/{kind}": tensor
        for each in state.optimizers
        for weight, kinds in each.state.items()
        for kind, tensor in kinds.items()
        if isinstance(tensor, Tensor)
    }
    parts = {"model": _changing(state.model), "average": state.average, "optimizer": optimizer}
    return {f"{part}/{name}": tensor.detach() for part in _PARTS for name, tensor in parts[part].items()}


def refuse_not_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise OSError if a weight or an average of this process contains NaN or infinity."""
    if (problem := _not_finite(tensors)) is not None:
        raise OSError(f"the {problem}: lower the learning rate")


def write_whole(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write tensors that one process gathered."""
    for part in _PARTS:
        save_file(_without(tensors, f"{part}/"), folder / f"{part}.safetensors")


def write_shards(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write the share of this process. Every process must take part; an error in one is an OSError in all of them."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    # A tensor that every process has, such as a buffer, is saved once, from the first process.
    planner = DefaultSavePlanner(dedup_save_to_lowest_rank=True)
    try:
        save({**tensors}, storage_writer=writer, planner=planner)
    except CheckpointException as error:
        raise OSError(_reason(error)) from error


def shards(folder: Path) -> list[str]:
    """Return the names of the shards in a folder."""
    return sorted(path.name for path in folder.glob("shard-*.safetensors"))


class LastEvaluation(NamedTuple):
    """The last evaluation of a run."""

    #: The step after which it was; 0 if there was none.
    step: int
    figures: dict[str, float]


def read_checkpoint(checkpoint: Path, state: TrainState) -> LastEvaluation:
    """Fill ``state`` from a checkpoint, whole or sharded; return the last evaluation before it.

    Raises:
        MemoryError, OSError, RuntimeError: the machine cannot read it now, mostly for want of memory.
        ValueError: the checkpoint is damaged or does not fit the model.
    """
    try:
        progress = read_json_object(checkpoint / "progress.json")
        if any(not isinstance(progress.get(name), dict) for name in ("figures", "scaler")):
            raise ValueError("progress.json has no figures")
        evaluation = LastEvaluation(progress.get("evaluated_at", 0), progress["figures"])
        if not isinstance(evaluation.step, int):
            raise ValueError("progress.json has no step of its figures")
        if any(not is_file(checkpoint / name) for name in progress.get("shards", ())):
            raise ValueError("a shard is missing")
        if progress.get("shards"):
            tensors = _fill_from_shards(state, checkpoint)
        else:
            tensors = _fill_from_whole(state, checkpoint)
        if state.scaler is not None and progress["scaler"]:
            state.scaler.load_state_dict(progress["scaler"])
        if (problem := first_anywhere(_not_finite(tensors))) is not None:
            raise ValueError(problem)
    except _OtherModelError:
        raise
    except (SafetensorError, FileNotFoundError, RuntimeError, LookupError, ValueError) as error:
        if is_machine_error(error):  # such as an out-of-memory error of torch, which is a RuntimeError
            raise
        words = one_line(error, longest=120)
        raise ValueError(f"{checkpoint} is damaged ({words}); delete it to go on from the one before it") from error
    return evaluation


class _OtherModelError(ValueError):
    """Error for a checkpoint with the tensors of another model."""


def _fill_from_whole(state: TrainState, checkpoint: Path) -> dict[str, Tensor]:
    files = {part: checkpoint / f"{part}.safetensors" for part in _PARTS}
    for file in files.values():
        file.open("rb").close()  # because safetensors calls a file missing that it cannot open for any reason
    parts = {part: load_file(file) for part, file in files.items()}
    tensors = {f"{part}/{name}": tensor for part, found in parts.items() for name, tensor in found.items()}
    places = _places(state, {name: tensor.shape for name, tensor in tensors.items()}, checkpoint)
    for name, place in places.items():
        _copy(place, tensors[name])
    return tensors


def _fill_from_shards(state: TrainState, checkpoint: Path) -> dict[str, Tensor]:
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(checkpoint))
    found = reader.read_metadata().state_dict_metadata
    shapes = {name: tensor.size for name, tensor in found.items() if isinstance(tensor, TensorStorageMetadata)}
    places = _places(state, shapes, checkpoint)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # a single process may read shards, too
            load({**places}, storage_reader=reader)
    except CheckpointException as error:
        for problem, _ in error.failures.values():
            if is_machine_error(problem):
                raise problem from None
        raise ValueError(_reason(error)) from error
    return places


def _places(state: TrainState, shapes: Mapping[str, tuple[int, ...]], checkpoint: Path) -> dict[str, Tensor]:
    """Return the tensors of the state to fill, by their names in the checkpoint; those of the optimizer are created.

    Raises:
        _OtherModelError: names or shapes of weights or averages differ.
        LookupError: a tensor of the optimizer belongs to no weight.
    """
    parts = {"model": _changing(state.model), "average": state.average}
    places = {f"{part}/{name}": tensor.detach() for part, tensors in parts.items() for name, tensor in tensors.items()}
    moments = {key for key in shapes if key.startswith("optimizer/")}
    wrong = {*places} ^ (shapes.keys() - moments) or {name for name in places if places[name].shape != shapes[name]}
    if wrong:
        names = ", ".join(name.partition("/")[2] for name in sorted(wrong)[:5])
        raise _OtherModelError(f"{checkpoint} is of another model: {names} do not fit; choose another folder")
    weights = dict(state.model.named_parameters())
    owners = {weight: each for each in state.optimizers for group in each.param_groups for weight in group["params"]}
    for key in sorted(moments):
        name, kind = key.removeprefix("optimizer/").rsplit("/", 1)
        like, owner = weights[name], owners[weights[name]]
        if not shapes[key] and like.ndim:  # the count of steps
            place = torch.zeros((), device=like.device if owner.defaults.get("fused") else "cpu")
        elif shapes[key] == like.shape:
            place = torch.zeros_like(like.detach())
        else:
            raise LookupError(f"{key} has the shape {(*shapes[key],)}, and its weight {(*like.shape,)}")
        owner.state[like][kind] = places[key] = place
    return places


def _changing(model: nn.Module) -> dict[str, Tensor]:
    """Return trained parameters and persistent buffers by name."""
    parameters = dict(model.named_parameters())
    everything = dict(model.named_parameters(remove_duplicate=False))
    buffers = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if name not in everything}
    return {name: weight for name, weight in parameters.items() if weight.requires_grad} | buffers


def _not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return a message about a weight or average of this process with NaN or infinity; None if there is none."""
    for name, tensor in tensors.items():
        part, _, own = name.partition("/")
        if part != "optimizer" and not is_finite(_local(tensor)):
            return f"{part}'s {own!r} has NaN or infinity in it"
    return None


def _without(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _local(tensor: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _reason(error: Any) -> str:  # noqa: ANN401 - a CheckpointException, which importing this file must not import
    problem, _ = next(iter(error.failures.values()))
    return one_line(problem, longest=120)


@torch.no_grad()
def _copy(into: Tensor, tensor: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded over processes."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(into, DTensor):
        tensor = distribute_tensor(tensor.to(into.device), into.device_mesh, into.placements)
    into.copy_(tensor)
