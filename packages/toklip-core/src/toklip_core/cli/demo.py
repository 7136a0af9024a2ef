"""``toklip demo``. Imports click only; the body imports the rest."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import click

from toklip_core.plugins import Registry, registry


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("demo.html"), show_default=True, help="The page to write."
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="Work in this new folder, and leave there all that the commands write; by default a temporary one.",
)
@click.pass_context
def demo(ctx: click.Context, out: Path, folder: Path | None) -> None:
    """Show on one page what all this is about.

    A photograph to ids and back; scenes explained, classified, searched, asked about and drawn: each with the command,
    which is run, and its Python. Offline, with the models that are in the packages; less than a minute on two cores.
    """
    from toklip_core.demo import write_demo

    say = partial(click.echo, err=True)
    found = ctx.find_object(Registry) or registry()
    group = ctx.find_root().command
    assert isinstance(group, click.Group)
    with tempfile.TemporaryDirectory() as temporary:
        missing = write_demo(out, folder or Path(temporary, "demo"), commands=group, found=found, say=say)
    if missing:
        say(f"more with: pip install {' '.join(missing)}")
    say(f"written: {out}; open it in a browser")
