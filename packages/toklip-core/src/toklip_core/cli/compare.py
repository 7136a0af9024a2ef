"""``toklip compare``. Imports click only; the bodies import the rest."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import click

from toklip_core.cli.group import registry_of
from toklip_core.cli.options import (
    COUNT,
    SIDE,
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
)


@click.group()
def compare() -> None:
    """Compare models of the same kind on the same data."""


@compare.command()
@click.argument(
    "words",
    nargs=-1,
    metavar="TOKENIZERS... PICTURES...",
    shell_complete=names_or_files(tokenizer_names),
)
@click.option(
    "--out",
    type=PathName(path_type=Path),
    help="Also write a sheet of the first pictures through each tokenizer to this picture file.",
)
@click.option("--shown", type=COUNT, default=4, show_default=True, help="Number of pictures on the sheet.")
@click.option(
    "--size", "image_size", type=SIDE, help="Side of the square pictures in pixels. [default: each tokenizer's own]"
)
@resize
@lpips
@max_pixels
@batch_size("pictures per batch")
@dtype("Precision of the tokenizers; bfloat16 is faster and changes some ids.")
@device
@as_json
@click.pass_context
def tokenizers(
    ctx: click.Context,
    /,
    words: tuple[str, ...],
    out: Path | None,
    as_json: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Compare VQ tokenizers on the same pictures.

    TOKENIZERS are names from `toklip tokenizers`, each alone or with weights of your own, as NAME=PATH. PICTURES are
    files, folders, globs, tars, Parquet files or scenes:SPLIT?count=N; give a folder that is named like a tokenizer as
    ./FOLDER. The table has the bits of a picture, PSNR, SSIM, LPIPS, rFID, the codebook usage of each level, pictures
    per second (encoded and decoded) and the licence of the weights. Each tokenizer reconstructs pictures of its own
    size, which the table names, unless --size is given. LPIPS and rFID need networks that are never downloaded.
    """
    from toklip_core.evaluation import compare_tokenizers, draw_comparison
    from toklip_core.pictures import WRITTEN_SUFFIXES, refuse_output, save_picture

    named, pictures = _split(words, registry_of(ctx).tokenizers)
    if out is not None:
        refuse_output(out, pictures, suffixes=WRITTEN_SUFFIXES)
    report = compare_tokenizers(named, pictures, compute=compute_of(options), **options)
    click.echo(json.dumps(report.as_json(), indent=2) if as_json else report.as_text())
    if out is not None:
        save_picture(draw_comparison(report), out)
        click.echo(f"written: {out}", err=True)


def _split(words: tuple[str, ...], known: Collection[str]) -> tuple[list[str], list[str]]:
    """Return the tokenizers, which come first, and the pictures."""
    count = next((place for place, word in enumerate(words) if word.partition("=")[0] not in known), len(words))
    pictures = list(words[count:])
    for word in pictures[:1]:  # perhaps a tokenizer that is misspelt
        near = difflib.get_close_matches(word.partition("=")[0], known, n=1)
        if near and not Path(word).exists():
            raise LookupError(f"{word!r} is neither a tokenizer nor a picture that is there. Did you mean {near[0]!r}?")
    if not count:
        raise click.UsageError("name one or more tokenizers, such as vqgan-tiny, and after them the pictures")
    if not pictures:
        raise click.UsageError(f"got {' '.join(words)} alone; name pictures after the tokenizers")
    return list(words[:count]), pictures
