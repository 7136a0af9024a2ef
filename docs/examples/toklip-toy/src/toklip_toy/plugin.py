"""Hooks of this package. Every `toklip --help` imports this module, so it does not import torch."""

from __future__ import annotations

from pathlib import Path

import click
from toklip_core import TokenizerSpec, VQTokenizer, hookimpl
from toklip_core.plugins import Weights


def grid(weights: Weights | None) -> VQTokenizer:
    """Build the tokenizer; torch is imported only here."""
    from toklip_toy.grid import load_grid

    return load_grid(weights)


def residual(weights: Weights | None) -> VQTokenizer:
    """Build the tokenizer of four ids per position, which has no weights."""
    from toklip_toy.residual import ResidualTokenizer

    if weights is not None:
        raise ValueError("the tokenizer 'toy-residual' has no weights; leave out `--weights`")
    return ResidualTokenizer()


@hookimpl
def toklip_register_tokenizers() -> list[TokenizerSpec]:
    """Offer two tokenizers."""
    return [
        TokenizerSpec(
            name="toy",
            factory=grid,
            summary="Mean colour of a 4 x 4 cell, 64 colours.",
            image_size=64,
            licence="Apache-2.0",
            codebook_sizes=(64,),
            grid=(16, 16),
        ),
        TokenizerSpec(
            name="toy-residual",
            factory=residual,
            summary="Mean colour of a 4 x 4 cell, 4 ids of 8 colours each.",
            image_size=64,
            licence="Apache-2.0",
            codebook_sizes=(8, 8, 8, 8),
            grid=(16, 16),
        ),
    ]


@hookimpl
def toklip_register_commands(cli: click.Group) -> None:
    """Offer one command, `toklip palette`."""
    cli.add_command(palette)


@click.command()
@click.argument("picture", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--colours", default=64, show_default=True, type=click.IntRange(1, 256), help="Maximum palette size.")
def palette(picture: Path, out: Path, colours: int) -> None:
    """Write a palette that suits PICTURE to OUT, for `--tokenizer toy --weights OUT`."""
    from toklip_core.pictures import refuse_output

    from toklip_toy.palette import choose_palette, save_palette

    refuse_output(out, [picture], option="OUT")
    save_palette(choose_palette(picture, colours), out)
