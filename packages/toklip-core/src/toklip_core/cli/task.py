"""Commands of ``toklip train`` from training tasks. Like all modules of commands, it only imports click."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import click

from toklip_core.cli.options import PathName, as_json, refuse_unused

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    from toklip_core.config import Config
    from toklip_core.training import FitReport

ConfigT = TypeVar("ConfigT", bound="Config")


@dataclass(frozen=True, kw_only=True)
class TrainTask(Generic[ConfigT]):
    """Description of a training task: its settings and its function."""

    #: Class of the settings.
    settings: type[ConfigT]
    #: Folder of its recipes NAME.toml; the first line of each is a comment that summarises it.
    recipes: Traversable
    #: Function of the settings and the run's folder. Import torch inside it, so that wrong settings fail at once.
    train: Callable[[ConfigT, Path], FitReport]


def train_command(name: str) -> Callable[[Callable[[], TrainTask[ConfigT]]], click.Command]:
    """Turn a function that returns a task into ``toklip train NAME``; its docstring is the help text.

    The function is called when the command runs, so its imports cost other commands nothing. The command has
    the argument RECIPE (a recipe's name or a TOML file) and the options ``--out``, ``--set``, ``--list`` and
    ``--json``. A run that a signal stopped ends with the shell's status for it: 130 for Ctrl-C, 143 for SIGTERM, 129
    for SIGHUP. Only the first process prints; torchrun and accelerate set its RANK.
    """

    def command_of(task: Callable[[], TrainTask[ConfigT]]) -> click.Command:
        @click.command(name)
        @click.argument("recipe", required=False)
        @click.option(
            "--out",
            type=PathName(path_type=Path),
            help="Folder of the run. If it contains this run already, training resumes from the last checkpoint.",
        )
        @click.option(
            "--set",
            "overrides",
            multiple=True,
            metavar="KEY=VALUE",
            help="Override a setting, such as run.steps=100; repeatable.",
        )
        @click.option("--list", "listed", is_flag=True, help="List the recipes and exit.")
        @as_json
        @click.pass_context
        @wraps(task)
        def command(
            ctx: click.Context,
            /,
            recipe: str | None,
            out: Path | None,
            overrides: tuple[str, ...],
            listed: bool,
            as_json: bool,
        ) -> None:
            if listed:
                refuse_unused(ctx, ("recipe", "out", "overrides", "as_json"), "with --list")
                _list(task().recipes)
                return
            if recipe is None or out is None:
                raise click.UsageError("name a recipe or a TOML file, and --out FOLDER; --list lists the recipes")
            report = _run(task(), recipe, overrides, out)
            if os.environ.get("RANK", "0") == "0":
                _print(report, out, as_json=as_json)
            if report.signal:
                where = f"and saved at step {report.step}" if report.step else "before the first step"
                click.echo(f"Stopped {where}; run the same command again to continue.", err=True)
                raise SystemExit(128 + report.signal)

        return command

    return command_of


def _list(recipes: Traversable) -> None:
    from toklip_core.config import recipe_summaries

    for name, summary in recipe_summaries(recipes).items():
        click.echo(f"{name:<24}  {summary}")


def _run(task: TrainTask[ConfigT], recipe: str, overrides: tuple[str, ...], out: Path) -> FitReport:
    from toklip_core.config import load_config

    settings = load_config(recipe, task.settings, overrides, task.recipes)
    if find_spec("accelerate") is None:  # reported before data and models are searched
        raise LookupError("accelerate is not installed: pip install 'toklip-core[train]'")
    return task.train(settings, out)


def _print(report: FitReport, out: Path, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"out": str(out), **report._asdict()}))
    elif not report.signal:
        figures = [f"{name} {value:.4g}" for name, value in report.figures.items()]
        click.echo(f"{out / 'model'}: {', '.join([f'step {report.step}', *figures])}")
