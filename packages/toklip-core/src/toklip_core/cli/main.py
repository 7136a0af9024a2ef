"""The ``toklip`` command. Command modules import click only; the bodies import the rest."""

from __future__ import annotations

import json
from typing import Any

import click

from toklip_core import __version__
from toklip_core.cli.demo import demo
from toklip_core.cli.group import ErrorsAsLines, PluginGroup, plugin_commands, registry_of
from toklip_core.cli.models import classify, convert, explain, models, retrieval, search, zero_shot
from toklip_core.cli.options import (
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
from toklip_core.cli.train import encoder, teacher
from toklip_core.plugins import Plugin


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
    from toklip_core.devices import default_device
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
    from toklip_core.devices import default_device, default_workers
    from toklip_core.store import encode_pictures
    from toklip_core.training import stop_on_signals

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
    from toklip_core.devices import default_device
    from toklip_core.store import decode_store
    from toklip_core.training import stop_on_signals

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
    from toklip_core.scenes import Scenes
    from toklip_core.scenes.folder import write_scenes

    write_scenes(Scenes(**options), out, progress=True)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@click.pass_context
def tokenizers(ctx: click.Context, as_json: bool) -> None:
    """List the VQ tokenizers that the installed plugins offer."""
    specs = registry_of(ctx).tokenizers.values()
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
    found = registry_of(ctx)
    of_commands = plugin_commands(found, cli).errors
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
