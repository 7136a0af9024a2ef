"""The ``toklip`` command. Command modules import click only; the bodies import the rest."""

from __future__ import annotations

import json
from typing import Any

import click

from toklip_core import __version__
from toklip_core.plugins import registry

#: Commands of packages that may be missing, so that `toklip generate` can say what to install.
_COMMANDS_ELSEWHERE = {
    "ask": "toklip-mllm",
    "generate": "toklip-gen",
}
_TRAIN_COMMANDS_ELSEWHERE = {"vq": "toklip-vq", "mllm": "toklip-mllm", "generator": "toklip-gen"}
_EVALUATE_COMMANDS_ELSEWHERE = {"vqa": "toklip-mllm", "generation": "toklip-gen"}


class PluginGroup(click.Group):
    """A group that asks the installed plugins for commands the first time it is used.

    Args:
        elsewhere: command name -> the package it comes with; named when that package is missing.
    """

    _asked = False

    def __init__(self, *args: Any, elsewhere: dict[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._elsewhere = elsewhere or {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, those of plugins included."""
        _ask_plugins()
        return super().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command; a UsageError that says what to install if its package is missing."""
        _ask_plugins()
        command = super().get_command(ctx, cmd_name)
        if command is None and cmd_name in self._elsewhere:
            package = self._elsewhere[cmd_name]
            raise click.UsageError(
                f"`{ctx.command_path} {cmd_name}` comes with {package}, which is not installed: pip install {package}"
            )
        return command


class ErrorsAsLines(PluginGroup):
    """The outermost group: users' errors become one line and exit status 1; anything else is a bug and keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except (ValueError, LookupError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            raise click.ClickException(_one_line(error)) from error


def _one_line(error: BaseException) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()) or type(error).__name__


def _ask_plugins() -> None:
    if not PluginGroup._asked:
        PluginGroup._asked = True
        registry().manager.hook.toklip_register_commands(cli=cli, train=train, evaluate=evaluate)


@click.group(cls=ErrorsAsLines, elsewhere=_COMMANDS_ELSEWHERE, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="toklip")
def cli() -> None:
    """Visual tokens that speak: pictures to discrete tokens and back, tokens with CLIP's meaning."""


@cli.group(cls=PluginGroup, elsewhere=_TRAIN_COMMANDS_ELSEWHERE)
def train() -> None:
    """Train a model from a recipe or a TOML file."""


@cli.group(cls=PluginGroup, elsewhere=_EVALUATE_COMMANDS_ELSEWHERE)
def evaluate() -> None:
    """Measure a model; the protocol is printed beside every figure."""


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def tokenizers(as_json: bool) -> None:
    """List the VQ tokenizers that the installed plugins offer."""
    specs = registry().tokenizers.values()
    if as_json:
        rows = [
            {"name": s.name, "summary": s.summary, "image_size": s.image_size, "source": s.source} for s in specs
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    width = max((len(spec.name) for spec in specs), default=0)
    for spec in specs:
        click.echo(f"{spec.name:<{width}}  {spec.summary}")
    if not specs:
        click.echo("No tokenizer is installed: pip install toklip-vq", err=True)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def plugins(as_json: bool) -> None:
    """List the installed plugins, and why any of them was left out."""
    reports = registry().reports
    if as_json:
        click.echo(json.dumps([vars(report) for report in reports], indent=2))
        return
    for report in reports:
        origin = f"{report.distribution} {report.version}".strip() or "unknown distribution"
        state = f"left out: {_one_line(ValueError(report.error))}" if report.error else "ok"
        click.echo(f"{report.name} ({report.module}, {origin}): {state}")
    if not reports:
        click.echo("No plugin is installed: pip install toklip-vq", err=True)


if __name__ == "__main__":
    cli()
