"""``toklip generate``. Imports click only; the body imports the rest."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import click
from toklip_core.options import COUNT, NUMBER, SEED, max_pixels, names_of_kind, names_or_files, toklip_names


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
    from toklip_core.encoding import default_device

    from toklip_gen.generation import generate as draw
    from toklip_gen.sampling import Guidance

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
