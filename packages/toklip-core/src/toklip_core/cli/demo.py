"""``toklip demo``. Imports click only; the body imports the rest."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import click

from toklip_core.cli.group import registry_of
from toklip_core.cli.options import PathName


@click.command()
@click.option(
    "--out",
    type=PathName(path_type=Path),
    default=Path("demo.html"),
    show_default=True,
    help="HTML file to write the page to.",
)
@click.option(
    "--folder",
    type=PathName(path_type=Path),
    help="New folder to work in, which keeps all files that the commands write. [default: a temporary folder]",
)
@click.pass_context
def demo(ctx: click.Context, out: Path, folder: Path | None) -> None:
    """Write an HTML page that shows what the toolkit does.

    The page encodes and decodes a photograph, and explains, classifies, searches, asks about and generates scenes. Each
    step shows the command, which is run for the page, and the Python code that does the same. The demo uses the models
    in the packages, needs no network and takes about 20 seconds on two cores.
    """
    from toklip_core.demo import write_demo

    say = partial(click.echo, err=True)
    group = ctx.find_root().command
    assert isinstance(group, click.Group)
    with tempfile.TemporaryDirectory() as temporary:
        missing = write_demo(out, folder or Path(temporary, "demo"), commands=group, found=registry_of(ctx), say=say)
    if missing:
        say(f"more with: pip install {' '.join(missing)}")
    say(f"written: {out}; open it in a browser")
