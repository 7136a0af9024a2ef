"""``toklip train encoder`` and ``toklip train teacher``. Imports click only; the bodies import the rest."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from toklip_core.training import FitReport


def _options(command: Callable[..., None]) -> Callable[..., None]:
    """The argument and options that both commands have."""
    for decorator in (
        click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON, for programs."),
        click.option("--list", "listed", is_flag=True, help="List the recipes."),
        click.option(
            "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting, such as run.steps=100."
        ),
        click.option(
            "--out", type=click.Path(path_type=Path), help="The run's folder; one that holds this run goes on."
        ),
        click.argument("recipe", required=False),
    ):
        command = decorator(command)
    return command


@click.command("encoder")
@_options
def encoder(listed: bool, **options: Any) -> None:  # noqa: ANN401
    """Train a semantic encoder: RECIPE is a recipe's name or a TOML file.

    It starts from the vision tower of a teacher, reads the codes of a frozen VQ tokenizer, and learns from captions and
    from the teacher. OUT/model is a TokLIP. Stopped by SIGTERM or Ctrl-C it saves first, and exits with 143 or 130; the
    same command goes on from there.
    """
    if listed:
        _list("encoder")
        return

    def train(recipe: str, overrides: tuple[str, ...], out: Path) -> FitReport:
        from toklip_core.config import load_config
        from toklip_core.settings import ENCODER_RECIPES, EncoderTrainConfig

        config = load_config(recipe, EncoderTrainConfig, overrides, ENCODER_RECIPES)
        from toklip_core.distillation import train_encoder

        return train_encoder(config, out)

    _run(train, **options)


@click.command("teacher")
@_options
def teacher(listed: bool, **options: Any) -> None:  # noqa: ANN401
    """Train a small CLIP on pixels, from nothing: a teacher where none can be downloaded.

    RECIPE is a recipe's name or a TOML file. OUT/model is what the setting `teacher` of `toklip train encoder` takes.
    Stopped, it goes on as `toklip train encoder` does.
    """
    if listed:
        _list("teacher")
        return

    def train(recipe: str, overrides: tuple[str, ...], out: Path) -> FitReport:
        from toklip_core.config import load_config
        from toklip_core.settings import TEACHER_RECIPES, TeacherTrainConfig

        config = load_config(recipe, TeacherTrainConfig, overrides, TEACHER_RECIPES)
        from toklip_core.teaching import train_teacher

        return train_teacher(config, out)

    _run(train, **options)


def _list(kind: Literal["encoder", "teacher"]) -> None:
    from toklip_core.settings import recipe_summaries

    for name, summary in recipe_summaries(kind).items():
        click.echo(f"{name:<24}  {summary}")


def _run(
    train: Callable[[str, tuple[str, ...], Path], FitReport],
    *,
    recipe: str | None,
    out: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    if recipe is None or out is None:
        raise click.UsageError("name a recipe or a TOML file, and --out FOLDER; --list lists the recipes")
    report = train(recipe, overrides, out)
    if os.environ.get("RANK", "0") == "0":
        if as_json:
            click.echo(json.dumps({"out": str(out), **report._asdict()}))
        elif not report.signal:
            figures = [f"{name} {value:.4g}" for name, value in report.figures.items()]
            click.echo(f"{out / 'model'}: {', '.join([f'step {report.step}', *figures])}")
    if report.signal:
        click.echo(f"Stopped and saved at step {report.step}; the same command goes on.", err=True)
        raise SystemExit(128 + report.signal)
