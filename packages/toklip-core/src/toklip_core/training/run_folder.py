"""The folder of a training run: its settings, checkpoints, log and result.

    OUT/run.json                     number of the format, and settings; a resume must have the same
    OUT/checkpoints/step-00001000/   a checkpoint, see :mod:`toklip_core.training.checkpoints`: whole, or not there
    OUT/metrics.jsonl                one JSON object per line, for programs
    OUT/tensorboard/                 the same, and pictures
    OUT/wandb-run                    id of the run at Weights & Biases, if it logs there too
    OUT/model/                       the result: a model folder

Checkpoints and the model are written into hidden folders and then renamed. None of their files is a pickle. A lock,
which ends with its process, lets only one run at a time train into a folder.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from torch import Tensor, nn

from toklip_core.config import changed_keys
from toklip_core.files import (
    delete,
    filling,
    flush_to_disk,
    held_alone,
    hidden_path,
    is_file,
    one_line,
    read_json_object,
    write_text,
)
from toklip_core.training.checkpoints import (
    LastEvaluation,
    TrainState,
    first_anywhere,
    gather,
    is_sharded,
    read_checkpoint,
    refuse_not_finite,
    saved_tensors,
    shards,
    write_shards,
    write_whole,
)
from toklip_core.weights import CONFIG_FILE

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.utils.tensorboard import SummaryWriter
    from tqdm import tqdm


#: Version of run folders and of the computation. It changes whenever older runs cannot be resumed any more.
FORMAT = 1
#: File that the process that trains into the folder locks.
_LOCK = ".run.lock"


class RunFolder:
    """The folder of a run, as used by one of its processes.

    Args:
        path: folder that is missing, empty, or of this run.
        accelerator: accelerator that tells which process this is.
        keep: number of checkpoints to keep.
        project: Weights & Biases project for the log; LookupError if that library is not installed.
    """

    def __init__(self, path: Path, accelerator: Accelerator, *, keep: int, project: str | None = None) -> None:
        self.path = path
        self._accelerator = accelerator
        self._keep = keep
        self._checkpoints = path / "checkpoints"
        self._metrics = path / "metrics.jsonl"
        self._writer: SummaryWriter | None = None
        self._wandb: Any = project and _imported("wandb", "pip install wandb, or leave out run.wandb")  # everywhere
        self._project = project
        self._online: Any = None
        self._bar: tqdm[Any] | None = None

    @contextmanager
    def open(self, settings: Mapping[str, Any], *, harmless: set[str]) -> Iterator[None]:
        """Create the folder, or check that it is of this run, and lock it while inside.

        Raises:
            ValueError: the folder contains something else or a run of another format, or settings other than the
                ``harmless`` ones (dotted keys) have changed.
            OSError: another run trains into it.
        """

        def write() -> None:
            # run.json comes first, so that the folder is known as a run's even if the process is killed now.
            write_text(self.path / "run.json", json.dumps(settings, indent=2) + "\n")
            self._checkpoints.mkdir(exist_ok=True)
            for leftover in (*self._checkpoints.glob(".*"), hidden_path(self.path / "model")):
                delete(leftover)

        settings = {"format": FORMAT, **settings}
        self._refuse_other(settings, harmless)
        with ExitStack() as held:
            self._in_first_process(lambda: self._take(held), f"cannot train into {self.path}")
            self._refuse_other(settings, harmless)  # again, because another run may have ended here a moment ago
            self._accelerator.wait_for_everyone()  # until all have checked, before one writes
            self._in_first_process(write, f"cannot write into {self.path}")
            yield

    def load(self, state: TrainState, *, steps: int) -> tuple[int, LastEvaluation]:
        """Fill ``state`` from the last checkpoint; return its number of steps, 0 without one, and the last evaluation.

        Raises:
            ValueError: the checkpoint is damaged, does not fit the model, or has more steps than the run.
        """
        step = self._last_step()
        if step > steps:
            raise ValueError(
                f"{self.path} has finished step {step}, and run.steps is {steps}; give it {step} or more steps, or "
                "choose another folder"
            )
        checkpoint = self._checkpoints / _checkpoint_name(step)
        evaluation = LastEvaluation(0, {})
        if step:
            evaluation = read_checkpoint(checkpoint, state)
        evaluated = evaluation.step == step
        self._in_first_process(lambda: self._start_log(step, evaluated), f"cannot start the log in {self.path}")
        return step, evaluation

    def save(self, step: int, state: TrainState, evaluation: LastEvaluation) -> None:
        """Write a checkpoint, then delete the oldest ones.

        Raises:
            OSError: it cannot be written, such as on a full disk; earlier checkpoints are unchanged.
        """
        failure = f"cannot save step {step}; {self.last_checkpoint_in_words()}"
        tensors, sharded = saved_tensors(state), is_sharded(state.model)
        self._in_every_process(lambda: refuse_not_finite(tensors), failure)
        if not sharded:
            tensors = gather(tensors, keep=self._accelerator.is_main_process)
        scaler = state.scaler.state_dict() if state.scaler is not None else {}
        beside, final = self._checkpoints / f".{_checkpoint_name(step)}", self._checkpoints / _checkpoint_name(step)

        def finish() -> None:
            if not sharded:
                write_whole(tensors, beside)
            progress = {"step": step, "scaler": scaler, "shards": shards(beside)}
            write_text(beside / "progress.json", json.dumps(progress | _evaluated(evaluation)))
            flush_to_disk(*beside.iterdir())
            beside.rename(final)
            flush_to_disk(self._checkpoints)

        self._in_first_process(beside.mkdir, failure)  # outside of what tidies up: a folder there is another's
        try:
            if sharded:
                self._in_every_process(lambda: write_shards(tensors, beside), failure)
            self._in_first_process(finish, failure)
        finally:
            if self._accelerator.is_main_process:
                shutil.rmtree(beside, ignore_errors=True)
        self._in_first_process(self._delete_old_saves, failure)

    def record(self, step: int, evaluation: LastEvaluation) -> None:
        """Write an evaluation into the checkpoint of its step, if there is one."""
        file = self._checkpoints / _checkpoint_name(step) / "progress.json"

        def write() -> None:
            if is_file(file):
                write_text(file, json.dumps(read_json_object(file) | _evaluated(evaluation)))

        self._in_first_process(write, f"cannot write the evaluation of step {step} into its checkpoint")

    def export(
        self,
        product: nn.Module,
        export: Callable[[dict[str, Tensor], Path], None],
        refuse_other: Callable[[Path], None] | None = None,
    ) -> None:
        """Write the model folder into a hidden folder, then move its files into place.

        Args:
            product: module to export.
            export: function that writes (state dict, folder); it is called in the first process.
            refuse_other: function that raises ValueError if the written model differs; called in the first process.

        Raises:
            OSError: the folder cannot be written, or the model is refused; the old files stay.
        """
        tensors = gather(product.state_dict(), keep=self._accelerator.is_main_process)
        place = self.path / "model"

        def write() -> None:
            with filling(place, beside=hidden_path(place), last=CONFIG_FILE) as beside:
                export(tensors, beside)
                if refuse_other is not None:
                    refuse_other(beside)

        self._in_first_process(write, f"cannot write {place}")

    def log(self, step: int, figures: Mapping[str, float], pictures: Mapping[str, Tensor] | None = None) -> None:
        """Append a line to the metrics, and to tensorboard, in the first process."""
        if self._writer is None:
            return
        with self._metrics.open("a", encoding="utf-8") as file:
            # A norm that overflows in half precision is infinite, which JSON cannot write.
            finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
            file.write(json.dumps({"step": step, **finite}) + "\n")
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        if self._online is not None:
            self._online.log(dict(figures), step=step)
        for name, pixels in (pictures or {}).items():
            self._writer.add_images(name, (pixels.detach().float().cpu() / 2 + 0.5).clamp(0, 1), step)
        if self._bar is not None:
            losses = {name.removeprefix("loss/"): value for name, value in figures.items() if name.startswith("loss/")}
            if losses:
                self._bar.set_postfix({name: f"{value:.3g}" for name, value in losses.items()}, refresh=False)

    @contextmanager
    def progress(self, start: int, steps: int) -> Iterator[tqdm[Any]]:
        """Show a progress bar in the first process, and close the log at the end."""
        from tqdm import tqdm

        first = self._accelerator.is_main_process
        try:
            with tqdm(initial=start, total=steps, unit="step", disable=not first) as self._bar:
                yield self._bar
        finally:
            self._bar = None
            if self._writer is not None:
                self._writer.close()
            if self._online is not None:
                self._online.finish(exit_code=int(sys.exc_info()[0] is not None))

    def last_checkpoint_in_words(self) -> str:
        """Return a phrase for errors that names the last checkpoint."""
        step = self._last_step()
        return f"the last checkpoint is step {step} in {self._checkpoints}" if step else "there is no checkpoint yet"

    def _refuse_other(self, settings: Mapping[str, Any], harmless: set[str]) -> None:
        file = self.path / "run.json"
        if is_file(file):
            before = _read_settings(file)
            changed = [key for key in changed_keys(before, settings) if key not in harmless]
            if changed:
                more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
                raise ValueError(
                    f"{self.path} holds a run with other settings of {', '.join(changed[:4])}{more}; put them back to "
                    "go on with it, or choose another folder"
                )
        elif self.path.exists() and (
            not self.path.is_dir()
            or not all(entry.name.startswith((".run.json.", _LOCK)) for entry in self.path.iterdir())
        ):
            raise ValueError(f"{self.path} is neither empty nor a training run; choose another folder")

    def _take(self, held: ExitStack) -> None:
        """Lock the folder until ``held`` ends, or the process."""
        self.path.mkdir(parents=True, exist_ok=True)
        problem = "another run trains into it; wait for its end, or choose another folder"
        held.enter_context(held_alone(self.path / _LOCK, problem))

    def _save_steps(self) -> list[int]:
        found = (re.fullmatch(r"step-(\d+)", entry.name) for entry in self._checkpoints.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def _last_step(self) -> int:
        return max(self._save_steps(), default=0)

    def _start_log(self, step: int, evaluated: bool) -> None:
        """Delete the lines of the log after the checkpoint from which the run resumes.

        An evaluation of its step that the checkpoint does not have is deleted, too, because it is made again.
        """
        tensorboard = _imported("torch.utils.tensorboard", "pip install 'toklip-core[train]'")

        def kept(line: str) -> bool:
            at = _step_of(line)
            return at < step or (at == step and (evaluated or '"evaluate/' not in line))

        if self._metrics.exists():
            lines = self._metrics.read_text("utf-8").splitlines(keepends=True)
            write_text(self._metrics, "".join(line for line in lines if kept(line)))
        self._writer = tensorboard.SummaryWriter(str(self.path / "tensorboard"), purge_step=step + 1)
        self._online = self._wandb and self._run_of_wandb()

    def _run_of_wandb(self) -> Any:  # noqa: ANN401 - a library that may be missing
        """Start the run whose id is in the folder, or resume it. It keeps the first of two lines with the same step."""
        file, settings = self.path / "wandb-run", json.loads((self.path / "run.json").read_text("utf-8"))
        if not file.exists():
            write_text(file, os.urandom(16).hex())
        place = {"project": self._project, "name": self.path.resolve().name, "dir": str(self.path)}
        try:
            return self._wandb.init(**place, id=file.read_text("utf-8"), resume="allow", config=settings)
        except Exception as error:  # wandb's own classes, whose names change
            raise OSError(f"wandb does not start: {error}; WANDB_MODE=offline needs no network") from error

    def _delete_old_saves(self) -> None:
        for old in self._save_steps()[: -self._keep]:
            shutil.rmtree(self._checkpoints / _checkpoint_name(old))
        if self._writer is not None:
            self._writer.flush()

    def _in_first_process(self, work: Callable[[], None], failure: str) -> None:
        """Work in the first process; an error there is an OSError in every process: the others wait for it."""
        self._in_every_process(work if self._accelerator.is_main_process else lambda: None, failure)

    def _in_every_process(self, work: Callable[[], None], failure: str) -> None:
        """Work in every process; an error in one is an OSError in all of them."""
        problem: str | None = None
        unexpected: Exception | None = None
        try:
            work()
        except (OSError, ValueError, SafetensorError) as error:
            problem = str(error)
        except Exception as error:  # such as too little memory: the other processes would wait for hours
            problem, unexpected = repr(error), error
        problem = first_anywhere(problem)
        if unexpected is not None:
            raise unexpected
        if problem is not None:
            raise OSError(f"{failure} ({problem})")


def _read_settings(file: Path) -> dict[str, Any]:
    """Return the settings of a run of this format; ValueError if it is of another, or they cannot be read."""
    try:
        settings = read_json_object(file)
    except ValueError as error:
        raise ValueError(
            f"{file} is damaged, it holds no JSON object; copy the run.json that the same command writes into another "
            "folder, or choose another folder"
        ) from error
    if settings.get("format") != FORMAT:
        found = one_line(repr(settings["format"]), longest=40) if "format" in settings else "none"
        raise ValueError(
            f"{file.parent} holds a run of another release (format {found}, and this one resumes {FORMAT}); finish it "
            "with that release, or choose another folder"
        )
    return settings


def _evaluated(evaluation: LastEvaluation) -> dict[str, Any]:
    return {"figures": evaluation.figures, "evaluated_at": evaluation.step}


def _checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


def _step_of(line: str) -> float:
    """Return the step of a line of the metrics, infinite for half a line, which a kill may leave at the end."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _imported(module: str, way_out: str) -> Any:  # noqa: ANN401 - a module
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise LookupError(f"{error.name} is not installed: {way_out}") from error
