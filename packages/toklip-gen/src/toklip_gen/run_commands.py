"""``toklip train generator`` and ``toklip evaluate generation``. Imports click only; the bodies import the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from toklip_core.options import COUNT, SEED, SIDE, max_pixels, names_of_kind, names_or_files, toklip_names
from toklip_core.tasks import TrainTask, train_command

if TYPE_CHECKING:
    from toklip_core.training import FitReport

    from toklip_gen.settings import GeneratorTrainConfig


@train_command("generator")
def train_generator() -> TrainTask[GeneratorTrainConfig]:
    """Train a generator: RECIPE is a recipe's name or a TOML file.

    It says which id comes next, given a class or a text and the ids so far, read as ids, codes, or codes with TokLIP's
    tokens. Data are token stores (`toklip encode --augment ten-crop`) or pictures. OUT/model is what `toklip generate`
    takes. Stopped by Ctrl-C, SIGTERM or SIGHUP it saves first, and exits with 130, 143 or 129; the same command
    goes on from there.
    """
    from toklip_gen.settings import RECIPES, GeneratorTrainConfig

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
    from toklip_core.encoding import default_device

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

    from toklip_gen.drawing import Sampling, evaluate_on_classes, evaluate_on_scenes

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
