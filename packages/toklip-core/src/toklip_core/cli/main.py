"""The ``toklip`` command. Command modules import click only; the bodies import the rest."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from toklip_core import __version__
from toklip_core.cli.app import app
from toklip_core.cli.compare import compare
from toklip_core.cli.demo import demo
from toklip_core.cli.group import ErrorsAsLines, PluginGroup, plugin_commands, registry_of
from toklip_core.cli.models import classify, convert, explain, models, retrieval, search, size_text, zero_shot
from toklip_core.cli.options import (
    COUNT,
    NUMBER,
    SEED,
    SIDE,
    WORKERS,
    PathName,
    as_json,
    batch_size,
    compute_of,
    device,
    dtype,
    lpips,
    max_pixels,
    names_or_files,
    resize,
    tokenizer_names,
    toklip_names,
)
from toklip_core.cli.train import encoder, teacher
from toklip_core.plugins import Plugin, TokenizerSpec

if TYPE_CHECKING:
    from toklip_core.store import Engine

#: What `toklip tokenizers --json` says of a tokenizer.
_OF_A_TOKENIZER = (
    "name",
    "summary",
    "image_size",
    "fixed_size",
    "codebook_sizes",
    "grid",
    "factor",
    "ids_per_picture",
    "bits_per_picture",
    "rfid",
    "source",
    "size",
    "licence",
)
_WEIGHTS = click.option(
    "--weights", type=PathName(), help="Tokenizer weights, a file or a folder. [default: the tokenizer's own]"
)


@click.group(cls=ErrorsAsLines, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="toklip")
def cli() -> None:
    """Encode pictures into ids, decode ids into pictures, and train and use models that read ids."""


@cli.group(cls=PluginGroup)
def train() -> None:
    """Train a model from a recipe or a TOML file."""


train.add_command(encoder)
train.add_command(teacher)


@cli.group(cls=PluginGroup)
def evaluate() -> None:
    """Evaluate a model. Every result is printed with its protocol."""


@evaluate.command()
@click.argument("inputs", nargs=-1, required=True)
@click.option(
    "--tokenizer",
    default="vqgan-tiny",
    show_default=True,
    shell_complete=names_or_files(tokenizer_names),
    help="VQ tokenizer to evaluate; `toklip tokenizers` lists them.",
)
@_WEIGHTS
@click.option(
    "--size", "image_size", type=SIDE, help="Side of the square pictures in pixels. [default: the tokenizer's own]"
)
@resize
@lpips
@max_pixels
@batch_size("pictures per batch")
@dtype("Precision of the tokenizer; bfloat16 is faster and changes some ids.")
@device
@as_json
def reconstruction(inputs: tuple[str, ...], tokenizer: str, as_json: bool, **options: Any) -> None:  # noqa: ANN401
    """Measure how well a VQ tokenizer reconstructs pictures.

    INPUTS are picture files, folders, globs, tars, Parquet files with a column of pictures, or scenes:SPLIT?count=N.
    Reports PSNR, SSIM, LPIPS, rFID, codebook usage, codebook perplexity and the protocol. LPIPS and rFID need networks
    that the package does not contain and that are never downloaded: if the torch hub cache lacks one, the report names
    the missing file and where to put it. The evaluation runs in one process.
    """
    from toklip_core.evaluation import evaluate_tokenizer

    report = evaluate_tokenizer(tokenizer, inputs, compute=compute_of(options), **options)
    click.echo(json.dumps(report.as_json(), indent=2) if as_json else report.as_text())


@cli.command()
@click.argument("inputs", nargs=-1, required=True)
@click.option(
    "--out",
    "store",
    required=True,
    type=PathName(),
    help="Folder of the token store. If it contains a store with the same settings already, that store is continued.",
)
@click.option(
    "--tokenizer",
    shell_complete=names_or_files(tokenizer_names),
    help="VQ tokenizer; `toklip tokenizers` lists them. [default: --model's, else vqgan-tiny]",
)
@_WEIGHTS
@click.option(
    "--model",
    shell_complete=names_or_files(toklip_names),
    help="Also store one unit-norm feature per picture from this TokLIP; `toklip models` lists them.",
)
@click.option(
    "--tokens", is_flag=True, help="Also store every semantic token of --model (0.6 MB per picture of 256 tokens)."
)
@click.option(
    "--teacher",
    help="Also store one unit-norm feature per picture from this teacher (clip-tiny, a folder, or open_clip:NAME/TAG), "
    "for the training of an encoder.",
)
@click.option(
    "--size",
    "image_size",
    type=SIDE,
    help="Side of the square pictures in pixels. [default: --model's, else the tokenizer's own]",
)
@click.option(
    "--resize",
    type=click.Choice(["crop", "squash", "pad"]),
    help="How a picture is made square: crop takes the centre, squash ignores the aspect ratio, pad adds grey. "
    "[default: --model's or --teacher's, else crop]",
)
@click.option(
    "--augment",
    type=click.Choice(["ten-crop"]),
    help="Also store the ids of 20 augmented views per picture, for the training of a generator.",
)
@click.option(
    "--shuffle",
    is_flag=True,
    help="Store the pictures in random order, not folder by folder; class-conditional generators need this.",
)
@dtype("Precision of the networks; bfloat16 is faster and changes some ids.")
@batch_size("pictures per batch")
@max_pixels
@click.option(
    "--workers",
    type=WORKERS,
    help="Number of processes that read pictures; with --engine ray, of actors that read and encode. "
    "[default: one per core]",
)
@device
@click.option(
    "--engine",
    type=click.Choice(["built-in", "ray"]),
    default="built-in",
    show_default=True,
    help="What shares the work: processes of this machine, or a Ray cluster (pip install 'toklip-core[ray]'): that of "
    "RAY_ADDRESS, else one on this machine.",
)
@click.option(
    "--rank",
    type=NUMBER,
    default=0,
    envvar="RANK",
    show_envvar=True,
    help="Rank of this process, counted from 0.",
)
@click.option(
    "--world-size",
    type=COUNT,
    default=1,
    envvar="WORLD_SIZE",
    show_envvar=True,
    help="Total number of processes that share the work.",
)
@as_json
def encode(
    inputs: tuple[str, ...],
    store: str,
    engine: Engine,
    rank: int,
    world_size: int,
    as_json: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Encode pictures into a token store.

    The store contains the ids of every picture and, on request, its features. INPUTS are picture files, folders,
    globs, tars (KEY.jpg, KEY.txt, KEY.json), Parquet files with a column of pictures, or scenes:SPLIT?count=N, the
    scenes that `toklip scenes` would write. If the command is interrupted, run it again to continue. Pictures that
    cannot be read are listed in .STORE.unreadable. Under torchrun or accelerate the processes share the work.

    A picture's key is its path as typed, without a leading / or `..`. A picture whose key is already in the store is
    skipped. If it is a different picture, typed with the same path in another folder, use another store for it, or type
    a longer path.
    """
    from toklip_core.store import EncodeSettings, encode_pictures
    from toklip_core.training import stop_on_signals

    if engine == "ray" and options["workers"] is None:
        options["workers"] = 0  # one per core of the cluster
    compute = compute_of(options, progress=rank == 0)
    if options["tokenizer"] is None and options["model"] is None:
        options["tokenizer"] = "vqgan-tiny"
    settings = EncodeSettings(**options)
    with stop_on_signals() as stop:
        report = encode_pictures(
            inputs, store, settings, compute=compute, engine=engine, rank=rank, world_size=world_size, stop=stop
        )
    click.echo(json.dumps(report.as_json(), indent=2) if as_json else report.as_text(), err=not as_json)
    raise SystemExit(stop.exit_status)


@cli.command()
@click.argument("store", type=PathName())
@click.option("--out", required=True, type=PathName(), help="Folder to write the pictures to, as OUT/KEY.png.")
@click.option(
    "--weights",
    type=PathName(),
    help="Tokenizer weights that the store was encoded with. [default: the tokenizer's own]",
)
@batch_size("pictures per batch")
@device
@as_json
def decode(store: str, out: str, as_json: bool, **options: Any) -> None:  # noqa: ANN401
    """Decode a token STORE into pictures. Existing files are skipped."""
    from toklip_core.store import decode_store
    from toklip_core.training import stop_on_signals

    compute = compute_of(options)
    with stop_on_signals() as stop:
        report = decode_store(store, out, compute=compute, stop=stop, **options)
    click.echo(json.dumps(report.as_json(), indent=2) if as_json else report.as_text(), err=not as_json)
    raise SystemExit(stop.exit_status)


@cli.command()
@click.argument("out", type=PathName())
@click.option("--count", type=COUNT, default=100, show_default=True, help="Number of scenes.")
@click.option(
    "--split",
    type=click.Choice(["train", "validation", "held-out"]),
    default="train",
    show_default=True,
    help="Split of the scenes; some combinations of colour and shape occur only in held-out.",
)
@click.option(
    "--seed", type=SEED, default=0, show_default=True, help="Seed of the scenes; another seed gives other scenes."
)
@click.option(
    "--size", type=click.IntRange(8, SIDE.max), default=64, show_default=True, help="Side of the pictures in pixels."
)
@click.option(
    "--objects", type=click.IntRange(1, 3), help="Number of objects in each scene. [default: 1 to 3 at random]"
)
@click.option(
    "--background",
    type=click.Choice(["plain", "gradient", "striped", "checkered", "cloudy"]),
    help="Background of all scenes. [default: random for each scene]",
)
@click.option(
    "--places", is_flag=True, help="Write captions that give each object's place instead of relations between objects."
)
def scenes(out: str, **options: Any) -> None:  # noqa: ANN401
    """Write captioned pictures of coloured shapes.

    The folder OUT gets KEY.png and KEY.txt for each scene, and captions.jsonl.
    """
    from toklip_core.scenes import Scenes, write_scenes

    drawn = Scenes(**options)
    write_scenes(drawn, out, progress=True)
    click.echo(f"{len(drawn)} scenes written into {out}", err=True)


@cli.command()
@as_json
@click.pass_context
def tokenizers(ctx: click.Context, as_json: bool) -> None:
    """List the VQ tokenizers of the installed plugins.

    The columns are PX, the side in pixels of the pictures that it was trained on; Q x K, the ids per position and the
    codebook size; F, the side in pixels of one position; IDS and BITS, per picture of that side; RFID, as published;
    and SIZE, that of the weights. A summary and the file of the weights follow; --json adds what the rFID was measured
    on. Nothing is downloaded.
    """
    specs = [*registry_of(ctx).tokenizers.values()]
    if as_json:
        click.echo(json.dumps([{name: getattr(spec, name) for name in _OF_A_TOKENIZER} for spec in specs], indent=2))
        return
    rows = [("NAME", "PX", "Q x K", "F", "IDS", "BITS", "RFID", "SIZE", "LICENCE"), *map(_tokenizer_row, specs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if specs:
        click.echo(lines[0])
    for spec, line in zip(specs, lines[1:], strict=True):
        click.echo(line)
        click.echo(f"    {spec.summary} {spec.source}".rstrip())
    if not specs:
        click.echo("No tokenizer is installed: pip install toklip-vq", err=True)


@cli.command()
@as_json
@click.pass_context
def plugins(ctx: click.Context, as_json: bool) -> None:
    """List the installed plugins.

    If a plugin or its commands had to be left out, the list says why.
    """
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


def _tokenizer_row(spec: TokenizerSpec) -> tuple[str, ...]:
    """Return what `toklip tokenizers` says of a tokenizer; what is not known without the weights is empty."""
    return (
        spec.name,
        f"{spec.image_size}{' only' if spec.fixed_size else ''}",
        spec.codebooks,
        "" if spec.factor is None else f"{spec.factor}",
        "" if spec.ids_per_picture is None else f"{spec.ids_per_picture}",
        "" if spec.bits_per_picture is None else f"{spec.bits_per_picture:.0f}",
        spec.rfid.split()[0].strip(",;") if spec.rfid else "",
        "" if spec.size is None else size_text(spec.size),
        spec.licence,
    )


def _complaint(plugin: Plugin, of_commands: str) -> str:
    if plugin.error:
        return f"left out: {plugin.error}"
    return f"its commands are left out: {of_commands}" if of_commands else ""


for command in (app, classify, compare, convert, demo, explain, models, search):
    cli.add_command(command)
for command in (retrieval, zero_shot):
    evaluate.add_command(command)
