"""``toklip generate``. Imports click only; the body imports the rest."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from toklip_core.cli import (
    COUNT,
    NUMBER,
    SEED,
    SIDE,
    PathName,
    TrainTask,
    as_json,
    batch_size,
    device,
    dtype,
    max_pixels,
    named_model,
    names_or_files,
    note_single_words,
    refuse_unused,
    temperature,
    toklip_names,
    top_p,
    train_command,
)
from toklip_core.config import Compute, default_device

if TYPE_CHECKING:
    from toklip_core.training import FitReport

    from toklip_gen.generator import ModelSettings
    from toklip_gen.training import GeneratorTrainConfig


def _window(ctx: click.Context, param: click.Parameter, value: Any) -> Any:  # noqa: ANN401 - what click gives and takes
    """Return "auto", or the number."""
    try:
        return value if value == "auto" else COUNT.convert(value, param, ctx)
    except click.BadParameter as error:
        problem = error.message.rstrip(".")
        raise click.BadParameter(f"{problem}; wanted auto, or a number of positions from 1 on") from error


_GUIDANCE = click.option(
    "--guidance", type=float, help="Classifier-free guidance scale; 1 turns it off. [default: the generator's own]"
)
_TOP_K = click.option(
    "--top-k", type=int, help="Number of most likely ids to sample from; 0 means all. [default: the generator's own]"
)
_TOKLIP = click.option(
    "--toklip",
    type=PathName(),
    shell_complete=names_or_files(toklip_names),
    help="TokLIP to use instead of the one recorded in the generator's config.",
)
_DTYPE = dtype("Dtype of the generator. [default: as stored]", default=None)
_NOISE = click.option(
    "--noise",
    type=click.Choice(["uniform", "gumbel"]),
    default="uniform",
    show_default=True,
    help="Random numbers that choose the ids. With gumbel a seed gives another picture; with toklip-gen-tiny and "
    "--window it saves hardly any calls.",
)
_WINDOW = click.option(
    "--window",
    callback=_window,
    default="1",
    show_default=True,
    metavar="auto|N",
    help="Maximum number of positions per call of the model. A larger window needs fewer but slower calls; the picture "
    "is the same. auto times the first calls and chooses.",
)
_COMPILE = click.option(
    "--compile",
    "compiled",
    is_flag=True,
    help="Compile a sampling step with torch.compile first; meant for many pictures on a GPU (not measured).",
)


@click.command()
@click.argument("texts", nargs=-1)
@click.option(
    "--class", "classes", multiple=True, help="Class to generate instead of TEXTS, by name or number; repeatable."
)
@click.option("-n", "--count", type=COUNT, default=1, show_default=True, help="Number of pictures per prompt.")
@click.option(
    "--out",
    type=PathName(path_type=Path),
    default=Path("generated.png"),
    show_default=True,
    help="Picture file for one grid of all pictures (one row per prompt if there are several), or folder for one file "
    "per picture.",
)
@click.option(
    "--seed",
    type=SEED,
    default=0,
    show_default=True,
    help="Seed of the first picture of each prompt; each further picture adds one.",
)
@_GUIDANCE
@click.option(
    "--guidance-power",
    type=float,
    help="Power of the cosine along which the scale grows from 1 to --guidance, as in RAR. [default: constant scale]",
)
@click.option(
    "--guidance-first",
    type=NUMBER,
    default=0,
    show_default=True,
    help="First position with guidance, counted from 0.",
)
@click.option("--guidance-last", type=NUMBER, help="Last position with guidance. [default: the last one]")
@temperature(default=1.0)
@_TOP_K
@top_p
@_NOISE
@click.option(
    "--prefix",
    type=PathName(),
    help="Picture whose upper part is kept, a file or one scene such as scenes:held-out?count=1&seed=7; the rest is "
    "generated.",
)
@max_pixels
@click.option("--prefix-rows", type=int, help="Number of rows of ids to keep from --prefix. [default: half]")
@named_model(
    "--model",
    kind=None,
    default="toklip-gen-tiny",
    help_text="Model that generates pictures: a name from `toklip models`, a folder from `toklip train generator` or, "
    "with an image head, `toklip train mllm`, or a .pt file of LlamaGen.",
)
@_TOKLIP
@batch_size("pictures sampled at once", default=16)
@_WINDOW
@_DTYPE
@device
@_COMPILE
@as_json
@click.pass_context
def generate(
    ctx: click.Context,
    /,
    texts: tuple[str, ...],
    classes: tuple[str, ...],
    out: Path,
    model: str,
    dtype: str | None,
    device: str | None,
    as_json: bool,
    guidance: float | None,
    guidance_power: float | None,
    guidance_first: int,
    guidance_last: int | None,
    **options: Any,  # noqa: ANN401
) -> None:
    """Generate pictures from TEXTS, or from classes.

    Each of TEXTS is a prompt of its own, in quotes if it has several words: toklip generate "a red circle". A picture
    depends only on its prompt, its seed and the settings, so you can generate it again on its own.

    With --json, found counts the pictures that an interrupted run had already written, and settings has noise only if
    it is gumbel.
    """
    if bool(texts) == bool(classes):
        raise click.UsageError("give texts, or classes by --class; one of both, and not both")
    _refuse_without_effect(ctx)
    schedule = (guidance_first, guidance_last, guidance_power)
    note_single_words(texts, "toklip generate")
    if sys.stderr.isatty():
        click.echo(f"loading {model}", err=True)
    from toklip_core.drawing import Drawing, Guidance

    from toklip_gen.generate import GenerateSettings, Prefix, generate as draw

    prefix, rows, pixels = (options.pop(name) for name in ("prefix", "prefix_rows", "max_pixels"))
    drawing = Drawing(
        guidance=None if guidance is None else Guidance(guidance, *schedule),
        **{name: options.pop(name) for name in ("temperature", "top_k", "top_p", "noise")},
    )
    settings = GenerateSettings(
        model=_model_settings(model, options.pop("toklip"), dtype, device),
        drawing=drawing,
        of_classes=bool(classes),
        prefix=None if prefix is None else Prefix(prefix, rows, pixels),
        **options,
    )
    prompts = texts or [int(one) if re.fullmatch(r"-?\d+", one, re.ASCII) else one for one in classes]
    report = draw(prompts, out, settings, progress=sys.stderr.isatty())
    click.echo(json.dumps(report.as_json(), indent=2) if as_json else report.as_text(), err=not as_json)


def _refuse_without_effect(ctx: click.Context) -> None:
    """UsageError if an option of `toklip generate` was typed that has no effect beside the others."""
    if ctx.params["prefix"] is None:
        refuse_unused(ctx, ("prefix_rows", "max_pixels"), "without --prefix", instead="give the picture, too")
    guidance, schedule = ctx.params["guidance"], ("guidance_power", "guidance_first", "guidance_last")
    if guidance is None:
        refuse_unused(ctx, schedule, "without --guidance", instead="give the scale, too")
    elif guidance == 1:
        refuse_unused(ctx, schedule, "with --guidance 1, which turns guidance off", instead="give another scale")
    _refuse_greedy(ctx)


def _refuse_greedy(ctx: click.Context) -> None:
    """UsageError if an option of sampling was typed beside a temperature of 0."""
    from toklip_core.config import LEAST_TEMPERATURE

    if 0 <= ctx.params["temperature"] < LEAST_TEMPERATURE:
        why = f"with --temperature {ctx.params['temperature']:g}, which always takes the most likely id"
        refuse_unused(ctx, ("top_k", "top_p", "noise"), why, instead="give a higher one")


def _model_settings(name: str, toklip: str | None, dtype: str | None, device: str | None) -> ModelSettings:
    import torch

    from toklip_gen.generator import ModelSettings

    return ModelSettings(name, toklip, None if dtype is None else getattr(torch, dtype), device or default_device())


@train_command("generator")
def train_generator() -> TrainTask[GeneratorTrainConfig]:
    """Train an autoregressive generator.

    RECIPE is the name of a recipe or a TOML file. The generator predicts the next id from a class or a text and from
    the ids so far. It reads them as ids, as codes, or as codes with TokLIP's semantic tokens. The data are token stores
    (`toklip encode --augment ten-crop`) or pictures. The result is OUT/model, which `toklip generate --model` accepts.
    On Ctrl-C, SIGTERM or SIGHUP the run saves a checkpoint and exits with status 130, 143 or 129; run the same command
    again to resume.
    """
    from toklip_gen.training import RECIPES, GeneratorTrainConfig

    def train(config: GeneratorTrainConfig, out: Path) -> FitReport:
        from toklip_gen.training import train_generator

        return train_generator(config, out)

    return TrainTask(settings=GeneratorTrainConfig, recipes=RECIPES, train=train)


_RUN = {"extractor", "batch_size", "device", "as_json"}
_DRAWING = {"generator", "toklip", "dtype", "compiled", "guidance", "temperature", "top_k", "top_p", "seed"} | _RUN

_CAPTIONS = "captions of scenes"

#: What is measured -> the options that say something about it.
_MODES = {
    "INPUTS": {"inputs", "reference", "clip", "npz", "max_pixels"} | _RUN,
    "--write-reference": {"inputs", "write_reference", "max_pixels"} | _RUN,
    _CAPTIONS: {"inputs", "clip"} | _DRAWING,
    "--per-class": {"per_class", "reference", "npz", "size"} | _DRAWING,
}


@click.command("generation")
@click.argument("inputs", nargs=-1)
@named_model(
    "--generator",
    kind=None,
    help_text="Generator to sample pictures from: a name from `toklip models`, or a folder.",
)
@click.option("--per-class", type=COUNT, help="Number of pictures per class, for a class-conditional --generator.")
@click.option("--reference", help="Statistics of real pictures: a name such as adm-imagenet-256, or a .npz file.")
@click.option(
    "--extractor", help="Network whose features are compared: inception, or a model such as toklip-tiny."
)
@click.option(
    "--clip",
    shell_complete=names_or_files(toklip_names),
    help="CLIP or TokLIP for the CLIP score. For scenes it also judges whether pictures show what their captions say.",
)
@click.option("--npz", type=PathName(), help="Also write the pictures to this .npz file, for ADM's evaluator.")
@click.option(
    "--write-reference",
    type=PathName(),
    help="Write the statistics of INPUTS to this file as a reference, without evaluating them.",
)
@_TOKLIP
@_DTYPE
@_COMPILE
@_GUIDANCE
@temperature(default=1.0)
@_TOP_K
@top_p
@click.option(
    "--seed", type=SEED, default=0, show_default=True, help="Seed from which the seed of each picture is derived."
)
@click.option("--size", type=SIDE, help="Side in pixels to which the pictures of --per-class are resized.")
@max_pixels
@batch_size("pictures per batch")
@device
@as_json
@click.pass_context
def evaluate_generation(
    ctx: click.Context,
    /,
    inputs: tuple[str, ...],
    as_json: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Evaluate generated pictures.

    INPUTS are the pictures: files, folders, globs, tars, Parquet or .npz files. With --generator, the pictures are
    sampled first: a text-to-image generator needs scenes as INPUTS, such as scenes:held-out?count=256, and uses their
    captions as prompts; a class-conditional one samples --per-class pictures of each class.

    Computes the Fréchet distance (FID), Inception score, precision and recall against a reference, the CLIP score if
    the pictures have captions beside them and, for scenes, whether pictures show what their captions say. The report
    includes the protocol of every figure. References for reconstruction are refused. Inception's weights are never
    downloaded: if they are not in the torch hub cache, the error names the file and where to put it.
    """
    of_scenes = len(inputs) == 1 and inputs[0].startswith("scenes:")
    per_class = options["per_class"] is not None
    fits = per_class != of_scenes and (of_scenes or not inputs) if options["generator"] else inputs and not per_class
    if not fits:
        raise click.UsageError(
            "name INPUTS, or --generator with either one input such as scenes:held-out?count=256 or --per-class"
        )
    _refuse_unused(ctx, options)
    compute = Compute(
        device=options["device"] or default_device(),
        batch_size=options["batch_size"],
        max_pixels=options["max_pixels"],
        progress=True,
    )
    if options["write_reference"]:
        from toklip_gen.evaluation import write_reference_of

        extractor = options["extractor"] or "inception"
        info = write_reference_of(inputs, options["write_reference"], extractor=extractor, compute=compute)
        text = f"{options['write_reference']}: {info.pictures} pictures"
        click.echo(info.model_dump_json(indent=2) if as_json else text)
        return
    report = _of_generator(inputs, options) if options["generator"] else _of_files(inputs, options, compute)
    click.echo(json.dumps(report.as_json(), indent=2) if as_json else report.as_text())


def _of_files(inputs: tuple[str, ...], options: dict[str, Any], compute: Compute) -> Any:  # noqa: ANN401
    from toklip_gen.evaluation import Measures, evaluate_pictures

    measures = Measures(options["extractor"] or "inception", options["reference"], options["clip"])
    return evaluate_pictures(inputs, measures, npz=options["npz"], compute=compute)


def _of_generator(inputs: tuple[str, ...], options: dict[str, Any]) -> Any:  # noqa: ANN401
    from toklip_core.drawing import Drawing, Guidance
    from toklip_core.scenes import parse_scenes

    from toklip_gen.evaluation import Measures, SamplingSettings, evaluate_on_classes, evaluate_on_scenes

    scale, choice = options["guidance"], {name: options[name] for name in ("temperature", "top_k", "top_p")}
    drawing = Drawing(guidance=None if scale is None else Guidance(scale), **choice)
    sampling = SamplingSettings(drawing, **{name: options[name] for name in ("seed", "compiled", "batch_size")})
    settings = _model_settings(*(options[name] for name in ("generator", "toklip", "dtype", "device")))
    if inputs and (scenes := parse_scenes(inputs[0])):
        measures = Measures(options["extractor"], clip=options["clip"])
        return evaluate_on_scenes(settings, scenes, measures, sampling=sampling, progress=True)
    measures = Measures(options["extractor"] or "inception", options["reference"])
    chosen = {key: options[key] for key in ("size", "npz")}
    return evaluate_on_classes(
        settings, options["per_class"], measures, sampling=sampling, progress=True, **chosen
    )


def _refuse_unused(ctx: click.Context, options: dict[str, Any]) -> None:
    """UsageError if an option was given that says nothing about what is measured."""
    if options["generator"]:
        mode = "--per-class" if options["per_class"] else _CAPTIONS
    else:
        mode = "--write-reference" if options["write_reference"] else "INPUTS"
    refuse_unused(ctx, ctx.params.keys() - _MODES[mode], f"with {mode}")
    _refuse_greedy(ctx)
