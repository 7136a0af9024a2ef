"""``toklip generate``. Imports click only; the body imports the rest."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from toklip_core.cli import (
    COUNT,
    NUMBER,
    SEED,
    SIDE,
    TrainTask,
    max_pixels,
    names_of_kind,
    names_or_files,
    toklip_names,
    train_command,
)

if TYPE_CHECKING:
    from toklip_core.training import FitReport

    from toklip_gen.training import GeneratorTrainConfig

@click.command()
@click.argument("texts", nargs=-1)
@click.option(
    "--class", "classes", multiple=True, help="In place of TEXTS: the name of a class, or its number; several ones."
)
@click.option("-n", "number", type=COUNT, default=1, show_default=True, help="Pictures of each.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("generated.png"),
    show_default=True,
    help="A picture file: a grid of all, a row for each text if there are several. Or a folder: a file for each.",
)
@click.option(
    "--seed",
    type=SEED,
    default=0,
    show_default=True,
    help="Of the first; the next has the next.",
)
@click.option(
    "--guidance", type=float, help="How much the text or class weighs; 1: none; by default the generator's, mostly 4."
)
@click.option("--guidance-power", type=float, help="It grows from 1, along a cosine of this power, as RAR's.")
@click.option("--guidance-first", type=NUMBER, default=0, show_default=True, help="Id where it begins.")
@click.option("--guidance-last", type=NUMBER, help="Last id that has it.")
@click.option("--temperature", type=float, default=1.0, show_default=True, help="0 takes the likeliest id each time.")
@click.option("--top-k", type=int, help="Choose among so many ids; 0: all; by default the generator's own.")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="Among the likeliest, up to this share.")
@click.option("--prefix", type=click.Path(), help="A picture whose upper rows are kept; the rest is drawn.")
@max_pixels
@click.option("--prefix-rows", type=int, help="Rows of ids that are kept; by default the upper half.")
@click.option(
    "--model",
    default="toklip-gen-tiny",
    show_default=True,
    shell_complete=names_or_files(names_of_kind("generator")),
    help="A generator that `toklip models` lists, a folder that `toklip train generator` wrote, or LlamaGen's .pt.",
)
@click.option(
    "--toklip",
    type=click.Path(),
    shell_complete=names_or_files(toklip_names),
    help="Where the TokLIP that it reads is now, if not where it was.",
)
@click.option("--batch-size", type=COUNT, default=16, show_default=True, help="Pictures at a time.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), help="Of the generator; by default as stored.")
@click.option("--device", help="Such as cpu or cuda:1; by default a GPU if there is one.")
@click.option("--compile", "compiled", is_flag=True, help="Compile the step first: pays for many pictures on a GPU.")
@click.option("--json", "as_json", is_flag=True, help="Print files, prompts and seeds as JSON.")
def generate(
    texts: tuple[str, ...],
    classes: tuple[str, ...],
    out: Path,
    dtype: str | None,
    device: str | None,
    as_json: bool,
    guidance: float | None,
    guidance_power: float | None,
    guidance_first: int,
    guidance_last: int | None,
    **options: Any,  # noqa: ANN401
) -> None:
    """Draw pictures of TEXTS, or of classes.

    A picture is a function of its text, its seed and the settings: drawn again alone, it is the same.
    """
    if bool(texts) == bool(classes):
        raise click.UsageError("give texts, or classes by --class; one of both, and not both")
    if options["prefix_rows"] is not None and options["prefix"] is None:
        raise click.UsageError("--prefix-rows goes with --prefix, the picture whose rows they are")
    schedule = (guidance_first, guidance_last, guidance_power)
    if guidance is None and schedule != (0, None, None):
        raise click.UsageError("a schedule of guidance goes with --guidance, the scale that it leads to")
    if sys.stderr.isatty():
        click.echo(f"loading {options['model']}", err=True)
    import torch
    from toklip_core.devices import default_device

    from toklip_gen.generate import generate as draw
    from toklip_gen.generator import Guidance

    report = draw(
        texts or [int(one) if re.fullmatch(r"-?\d+", one, re.ASCII) else one for one in classes],
        out,
        of_classes=bool(classes),
        guidance=None if guidance is None else Guidance(guidance, *schedule),
        dtype=None if dtype is None else {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype],
        device=device or default_device(),
        progress=sys.stderr.isatty(),
        **options,
    )
    click.echo(json.dumps(report.as_json(), indent=2) if as_json else report.as_text(), err=not as_json)


@train_command("generator")
def train_generator() -> TrainTask[GeneratorTrainConfig]:
    """Train a generator: RECIPE is a recipe's name or a TOML file.

    It says which id comes next, given a class or a text and the ids so far, read as ids, codes, or codes with TokLIP's
    tokens. Data are token stores (`toklip encode --augment ten-crop`) or pictures. OUT/model is what `toklip generate`
    takes. Stopped by Ctrl-C, SIGTERM or SIGHUP it saves first, and exits with 130, 143 or 129; the same command
    goes on from there.
    """
    from toklip_gen.training import RECIPES, GeneratorTrainConfig

    def train(config: GeneratorTrainConfig, out: Path) -> FitReport:
        from toklip_gen.training import train_generator

        return train_generator(config, out)

    return TrainTask(settings=GeneratorTrainConfig, recipes=RECIPES, train=train)


_RUN = {"features", "batch_size", "device", "as_json"}
_DRAWING = {"generator", "toklip", "dtype", "compiled", "guidance", "temperature", "top_k", "top_p", "seed"} | _RUN

#: What is measured -> the options that say something about it.
_MODES = {
    "INPUTS": {"inputs", "reference", "clip", "npz", "max_pixels"} | _RUN,
    "--write-reference": {"inputs", "write_reference", "purpose", "max_pixels"} | _RUN,
    "--scenes": {"scenes", "split", "clip"} | _DRAWING,
    "--per-class": {"per_class", "reference", "npz", "size"} | _DRAWING,
}


@click.command("generation")
@click.argument("inputs", nargs=-1)
@click.option(
    "--generator",
    shell_complete=names_or_files(names_of_kind("generator")),
    help="Draw with this, in place of INPUTS: see `toklip models`, or a folder.",
)
@click.option(
    "--scenes", type=click.IntRange(2, COUNT.max), help="With a generator of texts: captions of so many scenes."
)
@click.option(
    "--split",
    type=click.Choice(["train", "validation", "held-out"]),
    default="held-out",
    show_default=True,
    help="Of the scenes.",
)
@click.option("--per-class", type=COUNT, help="With a generator of classes: pictures of each.")
@click.option("--reference", help="Real pictures' statistics: a name such as adm-imagenet-256, or a file NAME.npz.")
@click.option("--features", help="What pictures are compared by: inception, or a model such as toklip-tiny.")
@click.option(
    "--clip",
    shell_complete=names_or_files(toklip_names),
    help="A model that judges captions: CLIP score, and with --scenes the second judge.",
)
@click.option("--npz", type=click.Path(), help="Write the pictures there, too, for ADM's evaluator.")
@click.option("--write-reference", type=click.Path(), help="Write the statistics of INPUTS there; measure nothing.")
@click.option(
    "--purpose",
    type=click.Choice(["generation", "reconstruction"]),
    default="generation",
    show_default=True,
    help="Of the reference that is written: the other use of it is refused.",
)
@click.option(
    "--toklip",
    type=click.Path(),
    shell_complete=names_or_files(toklip_names),
    help="Where the generator's TokLIP is now, if not where it was.",
)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), help="Of the generator; by default as stored.")
@click.option("--compile", "compiled", is_flag=True, help="Compile the step first: for a GPU.")
@click.option("--guidance", type=float, help="1 is none; by default the generator's own, mostly 4.")
@click.option("--temperature", type=float, default=1.0, show_default=True, help="0 takes the likeliest id.")
@click.option("--top-k", type=int, help="Likeliest ids; 0: all; by default the generator's own.")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="Share of probability; 1: all.")
@click.option(
    "--seed", type=SEED, default=0, show_default=True, help="Another one, other pictures."
)
@click.option("--size", type=SIDE, help="Side that pictures of classes are resized to.")
@max_pixels
@click.option("--batch-size", type=COUNT, default=32, show_default=True, help="Pictures at a time.")
@click.option("--device", help="Such as cpu or cuda:1; by default a GPU if there is one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@click.pass_context
def evaluate_generation(
    ctx: click.Context,
    /,
    inputs: tuple[str, ...],
    as_json: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Measure drawn pictures: INPUTS (files, folders, tars, .npz), or what --generator draws.

    Fréchet distance (FID), Inception score, precision and recall against a reference; CLIP score where captions lie
    beside the pictures; with --scenes whether pictures show what their captions say. The protocol is printed beside the
    figures. A reference of reconstructions is refused. Inception's weights are not downloaded: what is not in the torch
    hub cache is named, with its place.
    """
    from toklip_core.devices import default_device

    drawn = [name for name in ("scenes", "per_class") if options[name] is not None]
    if bool(inputs) == bool(options["generator"]) or len(drawn) != bool(options["generator"]):
        raise click.UsageError("name INPUTS, or --generator with either --scenes or --per-class")
    _refuse_unused(ctx, options)
    run = {"batch_size": options["batch_size"], "device": options["device"] or default_device(), "progress": True}
    if inputs and options["write_reference"]:
        from toklip_gen.evaluation import write_reference_of

        features = options["features"] or "inception"
        info = write_reference_of(
            inputs,
            options["write_reference"],
            purpose=options["purpose"],
            features=features,
            max_pixels=options["max_pixels"],
            **run,
        )
        text = f"{options['write_reference']}: {info.pictures} pictures"
        click.echo(info.model_dump_json(indent=2) if as_json else text)
        return
    report = _of_files(inputs, options, run) if inputs else _of_generator(options, run)
    click.echo(json.dumps(report.as_json(), indent=2) if as_json else report.as_text())


def _of_files(inputs: tuple[str, ...], options: dict[str, Any], run: dict[str, Any]) -> Any:  # noqa: ANN401
    from toklip_gen.evaluation import evaluate_pictures

    chosen = {name: options[name] for name in ("reference", "clip", "npz", "max_pixels")}
    return evaluate_pictures(inputs, features=options["features"] or "inception", **chosen, **run)


def _of_generator(options: dict[str, Any], run: dict[str, Any]) -> Any:  # noqa: ANN401
    import torch

    from toklip_gen.evaluation import Sampling, evaluate_on_classes, evaluate_on_scenes

    how = Sampling(**{name: options[name] for name in Sampling._fields})
    name = options["generator"]
    dtype = None if options["dtype"] is None else getattr(torch, options["dtype"])
    run |= {"toklip": options["toklip"], "dtype": dtype}
    if options["scenes"]:
        chosen = {"split": options["split"], "judge": options["clip"], "features": options["features"]}
        return evaluate_on_scenes(name, options["scenes"], sampling=how, **chosen, **run)
    chosen = {key: options[key] for key in ("reference", "size", "npz")}
    features = options["features"] or "inception"
    return evaluate_on_classes(name, options["per_class"], sampling=how, features=features, **chosen, **run)


def _refuse_unused(ctx: click.Context, options: dict[str, Any]) -> None:
    """UsageError if an option was given that says nothing about what is measured."""
    given = {
        parameter.name: parameter.opts[0]
        for parameter in ctx.command.params
        if ctx.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
    }
    if options["generator"]:
        mode = "--scenes" if options["scenes"] else "--per-class"
    else:
        mode = "--write-reference" if options["write_reference"] else "INPUTS"
    if unused := [option for name, option in given.items() if name not in _MODES[mode]]:
        raise click.UsageError(f"{', '.join(unused)} does not go with {mode}; leave it out")
