"""The ``toklip`` command. Command modules import click only; the bodies import the rest."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import click

from toklip_core import __version__
from toklip_core.demo_command import demo
from toklip_core.messages import one_line
from toklip_core.model_commands import classify, convert, explain, models, retrieval, search, zero_shot
from toklip_core.options import (
    COUNT,
    NUMBER,
    SEED,
    SIDE,
    WORKERS,
    max_pixels,
    names_or_files,
    tokenizer_names,
    toklip_names,
)
from toklip_core.plugins import Plugin, Registry, reason, registry
from toklip_core.train_commands import encoder, teacher

#: Group -> command -> the package it comes with, named when that package is missing.
_ELSEWHERE = {
    "cli": {"ask": "toklip-mllm", "generate": "toklip-gen"},
    "train": {"vq": "toklip-vq", "mllm": "toklip-mllm", "generator": "toklip-gen"},
    "evaluate": {"vqa": "toklip-mllm", "generation": "toklip-gen"},
}


@dataclass(frozen=True)
class Commands:
    """The commands that plugins add, by group and name, and why the commands of a plugin were left out."""

    groups: dict[str, dict[str, click.Command]]
    errors: dict[Plugin, str]


@cache
def plugin_commands(found: Registry) -> Commands:
    """Ask the plugins for their commands; leave out, and say why, all those of a plugin that fails.

    A plugin fails if its hook raises or if it names a command that is there already.
    """
    taken = {group.name or "": dict(group.commands) for group in (cli, train, evaluate)}
    added: dict[str, dict[str, click.Command]] = {name: {} for name in taken}
    errors: dict[Plugin, str] = {}
    for plugin in found.plugins:
        if plugin.hook is None:
            continue
        # Groups of its own, so that a plugin neither replaces nor removes what others made.
        asked = {name: click.Group(name) for name in taken}
        try:
            with contextlib.redirect_stdout(sys.stderr):
                plugin.hook.toklip_register_commands(**asked)
            _refuse_taken_commands(asked, taken)
        except KeyboardInterrupt:
            raise
        except BaseException as failure:  # As at discovery: none may take `toklip` down.
            errors[plugin] = reason(failure)
            continue
        for name, group in asked.items():
            taken[name] |= group.commands
            added[name] |= group.commands
    return Commands(added, errors)


def _refuse_taken_commands(asked: dict[str, click.Group], taken: dict[str, dict[str, click.Command]]) -> None:
    for name, group in asked.items():
        for command in group.commands:
            if command in taken[name]:
                place = "toklip" if name == "cli" else f"toklip {name}"
                raise ValueError(f"the command `{place} {command}` exists already")


class PluginGroup(click.Group):
    """A group that has the commands of the plugins beside its own; they are asked when it is first used.

    Its name is the argument of ``toklip_register_commands`` that stands for it. Plugins come from the Registry that is
    the context's object (``CliRunner().invoke(cli, [...], obj=discover([...]))``), else from :func:`registry`.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, those of plugins included."""
        return sorted({*super().list_commands(ctx), *self._added(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command; a UsageError that says what to install if its package is missing."""
        command = super().get_command(ctx, cmd_name) or self._added(ctx).get(cmd_name)
        package = _ELSEWHERE[self.name or ""].get(cmd_name)
        if command is None and package is not None:
            raise click.UsageError(self._way_out(ctx, cmd_name, package))
        return command

    def _added(self, ctx: click.Context) -> dict[str, click.Command]:
        return plugin_commands(_registry(ctx)).groups[self.name or ""]

    def _way_out(self, ctx: click.Context, cmd_name: str, package: str) -> str:
        says = f"`{ctx.command_path} {cmd_name}` comes with {package}, which"
        if any(plugin.distribution == package for plugin in _registry(ctx).plugins):
            return f"{says} is installed but does not offer it: see `toklip plugins`"
        return f"{says} is not installed: pip install {package}"


class ErrorsAsLines(PluginGroup):
    """The outermost group: users' errors become one line and exit status 1; a bug keeps its traceback."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:  # noqa: ANN401 - as of click
        """Read the command line; asking plugins for their commands can be interrupted, too."""
        with _interruption():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> object:
        """Run a command."""
        try:
            with _interruption():
                return super().invoke(ctx)
        except BrokenPipeError:
            raise  # `toklip ... | head`: click ends quietly.
        except (ValueError, LookupError, OSError) as error:
            raise click.ClickException(_one_line(error)) from error


@contextlib.contextmanager
def _interruption() -> Iterator[None]:
    """End with one line and 130, a shell's status for Ctrl-C, wherever it comes; click would end with 1."""
    try:
        yield
    except KeyboardInterrupt as error:
        click.echo("Interrupted.", err=True)
        raise click.exceptions.Exit(128 + signal.SIGINT) from error


def _one_line(error: Exception) -> str:
    if isinstance(error, FileExistsError) and error.filename:  # of mkdir, which says "File exists" and no more
        return f"{error.filename} is a file, and a folder is wanted there; name another one"
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)  # else the repr of it
    return one_line(text) or type(error).__name__


def _registry(ctx: click.Context) -> Registry:
    return ctx.find_object(Registry) or registry()


@click.group(cls=ErrorsAsLines, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="toklip")
def cli() -> None:
    """Visual tokens that speak: pictures to discrete tokens and back, tokens with CLIP's meaning."""


@cli.group(cls=PluginGroup)
def train() -> None:
    """Train a model from a recipe or a TOML file."""


train.add_command(encoder)
train.add_command(teacher)


@cli.group(cls=PluginGroup)
def evaluate() -> None:
    """Measure a model; the protocol is printed beside every figure."""


@evaluate.command()
@click.argument("inputs", nargs=-1)
@click.option(
    "--tokenizer",
    default="llamagen-tiny",
    show_default=True,
    shell_complete=names_or_files(tokenizer_names),
    help="See `toklip tokenizers`.",
)
@click.option("--weights", type=click.Path(), help="A file or folder, in place of the published or shipped weights.")
@click.option("--scenes", type=COUNT, help="Measure on so many generated scenes, without INPUTS.")
@click.option(
    "--split",
    type=click.Choice(["train", "validation", "held-out"]),
    default="held-out",
    show_default=True,
    help="Of the scenes.",
)
@click.option(
    "--size", "image_size", type=SIDE, help="Side of the pictures; the tokenizer's own by default."
)
@click.option("--resize", type=click.Choice(["crop", "squash"]), default="crop", show_default=True, help="To a square.")
@click.option(
    "--lpips", type=click.Choice(["alex", "squeeze", "vgg"]), default="alex", show_default=True, help="Its backbone."
)
@max_pixels
@click.option("--batch-size", type=COUNT, default=16, show_default=True, help="Pictures at a time.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Of the network; bfloat16 is faster and changes some ids.",
)
@click.option("--device", help="Such as cpu or cuda:1; by default a GPU if there is one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def reconstruction(tokenizer: str, device: str | None, as_json: bool, **options: Any) -> None:  # noqa: ANN401
    """Measure what is lost from pixels to ids and back, on INPUTS (files, folders, globs, tars) or on scenes.

    PSNR, SSIM, LPIPS, rFID, the share of the codebook in use and its perplexity, and the protocol. LPIPS and rFID need
    networks that are not shipped: what is not in the torch hub cache is not downloaded but named, with its place. One
    process does it all.
    """
    from toklip_core.encoding import default_device
    from toklip_core.evaluation import evaluate_tokenizer

    report = evaluate_tokenizer(tokenizer, device=device or default_device(), progress=True, **options)
    click.echo(json.dumps(report.as_json(), indent=2) if as_json else report.as_text())


@cli.command()
@click.argument("inputs", nargs=-1, required=True)
@click.option(
    "--out", "store", required=True, type=click.Path(), help="The store, a folder; an earlier encode goes on."
)
@click.option(
    "--tokenizer",
    shell_complete=names_or_files(tokenizer_names),
    help="See `toklip tokenizers`; by default the model's, or llamagen-tiny.",
)
@click.option("--weights", type=click.Path(), help="A file or folder, in place of the published or shipped weights.")
@click.option(
    "--model",
    shell_complete=names_or_files(toklip_names),
    help="Store the unit feature of each picture, too, by this TokLIP: see `toklip models`.",
)
@click.option("--tokens", is_flag=True, help="And all of its tokens: 0.6 MB for a picture of 256 tokens.")
@click.option(
    "--teacher", help="Store its unit feature, too, to train from: a folder, or a name such as open_clip:NAME/TAG."
)
@click.option(
    "--size", "image_size", type=SIDE, help="Side of the pictures; the model's or tokenizer's own."
)
@click.option(
    "--resize",
    type=click.Choice(["crop", "squash"]),
    help="To a square; by default as the model or the teacher takes pictures, else crop.",
)
@click.option(
    "--augment", type=click.Choice(["ten-crop"]), help="Store ids of 20 more views, too, to train a generator from."
)
@click.option("--shuffle", is_flag=True, help="In random order, not folder by folder: to train a generator of classes.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Of the networks; bfloat16 is faster and changes some ids.",
)
@click.option("--batch-size", type=COUNT, default=32, show_default=True, help="Pictures at a time.")
@max_pixels
@click.option("--workers", type=WORKERS, help="Processes that read pictures; by default one per core.")
@click.option("--device", help="Such as cpu or cuda:1; by default a GPU if there is one.")
@click.option("--rank", type=NUMBER, default=0, envvar="RANK", show_envvar=True, help="Of this process.")
@click.option(
    "--world-size",
    type=COUNT,
    default=1,
    envvar="WORLD_SIZE",
    show_envvar=True,
    help="Processes in all.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def encode(workers: int | None, device: str | None, as_json: bool, **options: Any) -> None:  # noqa: ANN401
    """Write the ids of INPUTS, and features on request, into a token store.

    INPUTS are picture files, folders, globs, tars (KEY.jpg, KEY.txt, KEY.json) and Parquet files with a column of
    pictures. Killed and started again, an encode goes on. What cannot be read is named in STORE.unreadable. Started
    by torchrun or accelerate, processes share the work.

    A picture's key is its path as typed, without a leading / or ..: a second picture of the same key, typed in another
    folder, counts as there before. Take another store for it, or type a longer path.
    """
    from toklip_core.encoding import default_device, default_workers, encode_pictures
    from toklip_core.signals import stop_on_signals

    workers = default_workers() if workers is None else workers
    if options["tokenizer"] is None and options["model"] is None:
        options["tokenizer"] = "llamagen-tiny"
    with stop_on_signals() as stop:
        report = encode_pictures(
            workers=workers, device=device or default_device(), progress=options["rank"] == 0, stop=stop, **options
        )
    click.echo(json.dumps(report.as_json(), indent=2) if as_json else report.as_text(), err=not as_json)
    raise SystemExit(stop.exit_status)


@cli.command()
@click.argument("store", type=click.Path())
@click.option("--out", required=True, type=click.Path(), help="The folder of the pictures: OUT/KEY.png.")
@click.option("--weights", type=click.Path(), help="Those that the store was made with, if they were named then.")
@click.option("--batch-size", type=COUNT, default=32, show_default=True, help="Pictures at a time.")
@click.option("--device", help="Such as cpu or cuda:1; by default a GPU if there is one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def decode(device: str | None, as_json: bool, **options: Any) -> None:  # noqa: ANN401
    """Write the pictures of a token STORE; those that are there already stay as they are."""
    from toklip_core.decoding import decode_store
    from toklip_core.encoding import default_device
    from toklip_core.signals import stop_on_signals

    with stop_on_signals() as stop:
        report = decode_store(device=device or default_device(), progress=True, stop=stop, **options)
    click.echo(json.dumps(report.as_json(), indent=2) if as_json else report.as_text(), err=not as_json)
    raise SystemExit(stop.exit_status)


@cli.command()
@click.argument("out", type=click.Path())
@click.option("--count", type=COUNT, default=100, show_default=True, help="How many.")
@click.option(
    "--split",
    type=click.Choice(["train", "validation", "held-out"]),
    default="train",
    show_default=True,
    help="Only held-out has certain pairs of colour and shape.",
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Another one, other scenes.")
@click.option("--size", type=click.IntRange(8, SIDE.max), default=64, show_default=True, help="Side of the pictures.")
@click.option("--objects", type=click.IntRange(1, 3), help="In each scene; one to three by default.")
@click.option(
    "--background",
    type=click.Choice(["plain", "gradient", "striped", "checkered", "cloudy"]),
    help="Of all scenes; any by default.",
)
def scenes(out: str, **options: Any) -> None:  # noqa: ANN401
    """Write captioned pictures of coloured shapes into the folder OUT: KEY.png, KEY.txt, captions.jsonl."""
    from toklip_core.scenes import Scenes, write_scenes

    write_scenes(Scenes(**options), out, progress=True)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@click.pass_context
def tokenizers(ctx: click.Context, as_json: bool) -> None:
    """List the VQ tokenizers that the installed plugins offer."""
    specs = _registry(ctx).tokenizers.values()
    if as_json:
        rows = [{"name": s.name, "summary": s.summary, "image_size": s.image_size, "source": s.source} for s in specs]
        click.echo(json.dumps(rows, indent=2))
        return
    width = max((len(spec.name) for spec in specs), default=0)
    for spec in specs:
        click.echo(f"{spec.name:<{width}}  {spec.image_size:>4} px  {spec.summary}")
    if not specs:
        click.echo("No tokenizer is installed: pip install toklip-vq", err=True)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@click.pass_context
def plugins(ctx: click.Context, as_json: bool) -> None:
    """List the installed plugins, and why any of them was left out."""
    found = _registry(ctx)
    of_commands = plugin_commands(found).errors
    rows = [(plugin, _complaint(plugin, of_commands.get(plugin, ""))) for plugin in found.plugins]
    if as_json:
        names = ("name", "module", "distribution", "version")
        described = [{name: getattr(plugin, name) for name in names} | {"error": error} for plugin, error in rows]
        click.echo(json.dumps(described, indent=2))
        return
    for plugin, error in rows:
        click.echo(f"{plugin}: {error or 'ok'}")
    if not found.plugins:
        click.echo("No plugin is installed: pip install toklip-vq", err=True)


def _complaint(plugin: Plugin, of_commands: str) -> str:
    if plugin.error:
        return f"left out: {plugin.error}"
    return f"its commands are left out: {of_commands}" if of_commands else ""


for command in (classify, convert, demo, explain, models, search):
    cli.add_command(command)
for command in (retrieval, zero_shot):
    evaluate.add_command(command)


if __name__ == "__main__":
    cli()
