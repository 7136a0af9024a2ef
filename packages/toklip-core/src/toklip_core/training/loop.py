"""The training loop of all tasks is :func:`fit`, one function to read from top to bottom.

Its laws, which are tested:

- n steps = k steps + resume + (n - k) steps, bit for bit. The order of the data is a function of (seed, step),
  augmentation of (seed, epoch, index), other randomness of (seed, step, micro-batch, process): a resume needs no
  state of any of them, and skips samples without touching them.
- Several processes see the same batches as one process, and reach the same weights within rounding.
- Micro-batches give the gradients of the whole batch, within rounding, for means over samples and for contrasts.
- Frozen modules are not trained and not saved, and stay in evaluation mode.
- A checkpoint is complete or missing (see :mod:`toklip_core.training.run_folder`).

The engine is Hugging Face Accelerate: start several processes with ``torchrun`` or ``accelerate launch``, and shard
weights (FSDP 2, tested in two processes on CPUs) by accelerate's configuration. It needs the extra
``toklip-core[train]``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader

from toklip_core.config import RunConfig
from toklip_core.training.checkpoints import LastEvaluation, TrainState, whole
from toklip_core.training.optimizers import ParameterGroup, build_optimizers, trainable
from toklip_core.training.order import SampleKeys
from toklip_core.training.passes import Passes
from toklip_core.training.run_folder import RunFolder
from toklip_core.training.signals import held_back, leave_signals_to_the_parent, stop_on_signals
from toklip_core.training.task import Losses, Task
from toklip_core.training.worker_errors import CollatedSamples, as_it_is

if TYPE_CHECKING:
    from accelerate import Accelerator

#: How long a process waits for the others. At the end the first one writes the model, loads it again and compares it,
#: which takes longer than torch's 10 minutes for 7 billion weights on one thread, as torchrun gives each process.
_PATIENCE = timedelta(hours=2)


class FitReport(NamedTuple):
    """The end of a run."""

    #: Number of finished steps.
    step: int
    #: Figures of the last evaluation.
    figures: dict[str, float]
    #: The signal that stopped the run, with its last step saved if it has made any; 0 if it reached its last step.
    signal: int


def fit(task: Task, run: RunConfig, out: Path) -> FitReport:
    """Train a task into the folder ``out``, or resume the run there.

    SIGTERM, SIGINT and SIGHUP save after the current step and return; the report says so. Before the first step there
    is nothing to save.

    Args:
        task: model, data and losses of the training.
        run: length, optimizer, precision, and how often the run logs, evaluates and saves.
        out: folder that is missing, empty, or of this run.

    Raises:
        LookupError: the extra is not installed.
        ValueError: a loss is not finite, ``out`` contains something else, or the settings do not fit.
        OSError: a checkpoint cannot be written, and the previous one is kept; or another run trains into ``out``.
    """
    accelerator = _accelerator(run, task.unused_parameters)
    folder = RunFolder(out, accelerator, keep=run.keep, project=run.wandb)
    # The order of samples depends on their number.
    settings = {"run": run.model_dump(mode="json"), "samples": len(task.samples), **task.settings}
    with folder.open(settings, harmless=_harmless(run)):
        torch.manual_seed(run.seed)

        sharded = accelerator.distributed_type.value == "FSDP"
        groups, fused = task.parameter_groups(), _fuses(accelerator.device)
        optimizers = build_optimizers(trainable(task.model), run, groups, fused=fused, sharded=sharded)
        model, *optimizers = accelerator.prepare(task.model, *optimizers)
        core = accelerator.unwrap_model(model)
        product = core.get_submodule(task.product)
        average = _average(product) if run.ema_decay else {}
        state = TrainState(core, tuple(optimizer.optimizer for optimizer in optimizers), average, accelerator.scaler)
        start, last_evaluation = folder.load(state, steps=run.steps)
        clips = _clips(core, run, groups)
        passes = Passes(accelerator, model, task, run)

        rank, world_size = accelerator.process_index, accelerator.num_processes
        keys = SampleKeys(len(task.samples), run, start, rank, world_size, task.order, grouped=task.grouped)
        loader = _loader(task, keys, run, accelerator.device)
        window = _Window(accelerator, folder)
        _train_mode(model)
        with (
            closing(_batches(loader)) as batches,
            stop_on_signals() as request,
            folder.progress(start, run.steps) as progress,
        ):
            for step in range(start, run.steps + 1):
                due, last = step > start, step == run.steps
                stop = _anywhere(accelerator, request.signal)

                if due and (last or stop or step % run.save_every == 0):
                    window.log(step)
                    with window.paused():
                        folder.save(step, state, last_evaluation)

                # After a save of the same step, because an evaluation may fail or take long. Also before any step: an
                # earlier process may have ended between the two, or been stopped at what is the last step now.
                evaluates = last or (step % run.evaluate_every == 0 and not stop)
                if task.evaluate is not None and evaluates and last_evaluation.step < step:
                    window.refuse_not_finite()  # before the evaluation, so that the message has the step
                    with window.paused(), _averaged(product, average), _unsharded(model), torch.no_grad():
                        evaluation = task.evaluate(product.eval())
                    _train_mode(model)
                    last_evaluation = LastEvaluation(step, evaluation.figures)
                    figures = {f"evaluate/{name}": value for name, value in evaluation.figures.items()}
                    folder.log(step, figures, evaluation.pictures)
                    folder.record(step, last_evaluation)

                if last or stop:
                    break

                for values in passes.backward(batches, step):
                    window.add(step + 1, values)
                rate = run.learning_rate * learning_rate_factor(step, run)
                accelerator.unscale_gradients()
                norms = {name: whole(nn.utils.clip_grad_norm_(*clip)) for name, clip in clips.items()}
                for optimizer in optimizers:
                    for group in optimizer.param_groups:
                        group["lr"] = rate * group["factor"]
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                with torch.no_grad():
                    task.after_step(core)
                _update(average, trainable(product), task.replaced_rows(), decay=run.ema_decay)
                window.add(step + 1, Losses({}, {f"grad_norm/{name}": norm for name, norm in norms.items()}))

                progress.update()
                if (step + 1) % run.log_every == 0:
                    window.log(step + 1, learning_rate=rate)

        stopped = 0 if step == run.steps else stop
        if not stopped:
            with _averaged(product, average):
                folder.export(product, task.export, _compared(task, product, model))
        return FitReport(step, last_evaluation.figures, stopped)


def learning_rate_factor(step: int, run: RunConfig) -> float:
    """Return the factor on the learning rate at a step, counted from 0.

    >>> learning_rate_factor(4, RunConfig(steps=100, batch_size=1, learning_rate=1e-3, warmup_steps=10))
    0.5
    """
    if step < run.warmup_steps:
        return (step + 1) / run.warmup_steps
    if run.schedule == "cosine":
        done = (step - run.warmup_steps) / max(run.steps - run.warmup_steps, 1)
        floor = run.final_learning_rate / run.learning_rate
        return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2
    return run.drop ** sum(step >= milestone for milestone in run.milestones)


def _accelerator(run: RunConfig, unused_parameters: bool) -> Accelerator:
    try:
        from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
        from accelerate.state import AcceleratorState
        from accelerate.utils import DistributedType
    except ModuleNotFoundError as error:
        raise LookupError(f"{error.name} is not installed: pip install 'toklip-core[train]'") from error
    if run.precision == "fp16" and not torch.cuda.is_available():
        raise ValueError("got precision 'fp16' without a GPU; use 'bf16' or 'no'")
    AcceleratorState._reset_state()  # a singleton that would keep the precision of an earlier run
    ddp = DistributedDataParallelKwargs(find_unused_parameters=unused_parameters, broadcast_buffers=False)
    # On CPUs accelerate ignores torchrun unless it is told so, and each process would train alone.
    on_cpu = not torch.accelerator.is_available()
    accelerator = Accelerator(
        cpu=on_cpu, mixed_precision=run.precision, kwargs_handlers=[ddp, InitProcessGroupKwargs(timeout=_PATIENCE)]
    )
    sharded = accelerator.distributed_type is DistributedType.FSDP
    if accelerator.distributed_type is DistributedType.DEEPSPEED or (sharded and not accelerator.is_fsdp2):
        raise ValueError(f"got {accelerator.distributed_type.value}; shard with FSDP 2 instead (fsdp_version: 2)")
    if sharded:
        if torch.__version__ < "2.9":
            raise LookupError("FSDP needs torch 2.9 or newer, which saves shards: pip install --upgrade torch")
        # Each process has the weights already, and accelerate 1.15 fails on parameters of the outermost module.
        accelerator.state.fsdp_plugin.cpu_ram_efficient_loading = False
        # It would cast weights, inputs and losses to bf16; autocast alone decides, as without shards.
        accelerator.state.fsdp_plugin.mixed_precision_policy = None
    if run.batch_size % (run.accumulate * accelerator.num_processes):
        raise ValueError(
            f"got batch_size {run.batch_size}, which cannot be split into {run.accumulate} micro-batches on "
            f"{accelerator.num_processes} processes; change batch_size or accumulate"
        )
    return accelerator


def _harmless(run: RunConfig) -> set[str]:
    """Return the settings that may change when a run is resumed: those of memory, of the log and of where it ends.

    Weights depend on micro-batches as they do on the number of processes, which may change, too.
    """
    names = ("workers", "accumulate", "log_every", "evaluate_every", "save_every", "keep", "wandb")
    keys = {f"run.{name}" for name in names} | {"grad_checkpointing", "generator.grad_checkpointing", "text_cache"}
    return keys if run.schedule == "cosine" else {*keys, "run.steps"}


def _clips(
    model: nn.Module, run: RunConfig, groups: Sequence[ParameterGroup]
) -> dict[str, tuple[list[nn.Parameter], float]]:
    """Return label -> the parameters that are clipped together, and their limit, inf if only the norm is logged."""
    weights = trainable(model)
    clips: dict[str, tuple[list[nn.Parameter], float]] = {}
    for group in groups:
        limit = (run.max_grad_norm if group.max_grad_norm is None else group.max_grad_norm) or math.inf
        clips.setdefault(group.clip_with, ([], limit))[0].extend(weights[name] for name in sorted(group.names))
    return clips


def _fuses(device: torch.device) -> bool:
    return device.type in ("cpu", "cuda")


def _compared(task: Task, product: nn.Module, model: nn.Module) -> Callable[[Path], None] | None:
    if task.comparison is None:
        return None
    with _unsharded(model), torch.no_grad():
        return task.comparison(product.eval())


def _train_mode(model: nn.Module) -> None:
    """Switch to training mode all modules except those whose parameters are all frozen."""
    model.train()
    for module in model.modules():
        flags = {weight.requires_grad for weight in module.parameters()}
        if flags == {False}:
            module.eval()


def _average(product: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in trainable(product).items()}


def _update(
    average: dict[str, Tensor], weights: Mapping[str, Tensor], replaced: Mapping[str, Tensor], *, decay: float
) -> None:
    if not average:
        return
    now = {name: weights[name].detach() for name in average}
    torch._foreach_lerp_([*average.values()], [*now.values()], 1 - decay)
    for name in replaced.keys() & average.keys():
        average[name][replaced[name]] = now[name][replaced[name]]


@contextmanager
def _averaged(product: nn.Module, average: dict[str, Tensor]) -> Iterator[None]:
    """Exchange the weights and their averages while inside, in place, because parameters may be sharded."""

    def exchange() -> None:
        for name, weight in trainable(product).items():
            if name in average:
                kept = weight.detach().clone()
                weight.data.copy_(average[name])
                average[name].copy_(kept)

    exchange()
    try:
        yield
    finally:
        exchange()


@contextmanager
def _unsharded(model: nn.Module) -> Iterator[None]:
    """Gather the weights of an FSDP 2 model while inside, so that single modules of it can be called."""
    sharded: list[Any] = [module for module in model.modules() if hasattr(module, "unshard")]
    root: Any = model
    if root in sharded:
        root._get_fsdp_state()._lazy_init()  # else the root would be the first module that is called inside
    for module in sharded:
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.reshard()


def _anywhere(accelerator: Accelerator, number: int) -> int:
    """Return the number of a signal that any process received, the same in all processes, or 0."""
    if accelerator.num_processes == 1:
        return number
    numbers = torch.tensor(number, device=accelerator.device)
    dist.all_reduce(numbers, op=dist.ReduceOp.MAX)
    return int(numbers.item())


def _loader(task: Task, keys: SampleKeys, run: RunConfig, device: torch.device) -> DataLoader[Any]:
    return DataLoader(
        CollatedSamples(task.samples, task.collate),  # type: ignore[arg-type]  # a Dataset by structure
        batch_sampler=keys,
        num_workers=run.workers,
        collate_fn=as_it_is,
        pin_memory=device.type == "cuda",
        worker_init_fn=_leave_signals_to_the_parent,
    )


def _batches(loader: DataLoader[Any]) -> Generator[Any]:
    """Yield batches; closing the generator ends the workers, which a traceback would otherwise keep alive.

    In the place of a batch may be an error, which is raised.
    """
    try:
        with held_back():
            batches: Any = iter(loader)
        for batch in batches:
            if isinstance(batch, Exception):
                raise batch
            yield batch
    except Exception as error:
        if loader.num_workers == 0:
            raise
        # A traceback would keep the loader's iterator alive, and so its workers. The error itself has the worker's.
        batches = None
        raise error.with_traceback(None)  # noqa: B904 - it is the same error


def _leave_signals_to_the_parent(worker: int) -> None:
    leave_signals_to_the_parent()  # the loop still needs its batch and ends the workers itself


@dataclass
class _Window:
    """Values since the last line of the log. They stay on the device, because reading them stalls a GPU."""

    accelerator: Accelerator
    folder: RunFolder
    rows: list[tuple[int, Losses]] = field(default_factory=list)
    since: float = field(default_factory=time.perf_counter)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave what is done inside out of the time that the steps took."""
        begun = time.perf_counter()
        yield
        self.since += time.perf_counter() - begun

    def add(self, step: int, values: Losses) -> None:
        device = self.accelerator.device  # a norm without any gradient is on the CPU
        losses, metrics = ({n: v.detach().to(device, torch.float32) for n, v in part.items()} for part in values[:2])
        self.rows.append((step, Losses(losses, metrics)))

    def log(self, step: int, **more: float) -> None:
        """Log means over steps and processes; ValueError if a loss or a gradient norm is not finite."""
        if not self.rows:
            return
        sums: dict[str, list[float]] = {}
        for _, name, value in self._means():
            if not math.isnan(value):  # a metric of steps that have nothing to measure
                sums.setdefault(name, []).append(value)
        steps = len({at for at, _ in self.rows})
        more["steps_per_second"] = steps / (time.perf_counter() - self.since)
        self.folder.log(step, {name: sum(values) / len(values) for name, values in sums.items()} | more)
        self.rows.clear()
        self.since = time.perf_counter()

    def refuse_not_finite(self) -> None:
        """Raise the error of :meth:`log` without logging anything."""
        for _ in self._means():
            pass

    def _means(self) -> Iterator[tuple[int, str, float]]:
        """Yield step, name and mean of each value over the processes that measured it.

        ValueError is raised in all processes if one is not finite. With fp16 a gradient norm may be infinite, because
        GradScaler skips that step. Otherwise weights would be NaN.
        """
        flat = [value for _, row in self.rows for part in row[:2] for value in part.values()]
        if not flat:
            return
        names = [name for _, row in self.rows for name in (*(f"loss/{name}" for name in row.losses), *row.metrics)]
        values = torch.stack(flat)
        may_lack = values.new_tensor([not name.startswith(("loss/", "grad_norm/")) for name in names]).bool()
        lacks = may_lack & values.isnan()  # this process had nothing to measure
        sums = torch.stack([values.masked_fill(lacks, 0), (~lacks).to(values)])
        numbers = torch.div(*self.accelerator.reduce(sums, reduction="sum")).tolist()
        watched = {"loss": "loss"}
        if self.accelerator.scaler is None:
            watched["grad_norm"] = "norm of the gradients of"
        steps = [step for step, row in self.rows for part in row[:2] for _ in part]
        for step, name, value in zip(steps, names, numbers, strict=True):
            kind, _, own = name.partition("/")
            if kind in watched and not math.isfinite(value):
                raise ValueError(
                    f"the {watched[kind]} {own!r} is {value} at step {step}; "
                    f"{self.folder.last_checkpoint_in_words()}: "
                    "lower the learning rate, or look at the data of that step"
                )
            yield step, name, value
