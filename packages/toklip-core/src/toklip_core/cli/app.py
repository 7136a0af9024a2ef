"""``toklip app``. Imports click only; the body imports the rest."""

from __future__ import annotations

from typing import Any

import click

from toklip_core.cli.group import registry_of
from toklip_core.cli.options import (
    compute_of,
    device,
    matcher_names,
    max_pixels,
    named_model,
    names_or_files,
)


@click.command()
@named_model(
    "--model",
    kind="language model",
    help_text="Language model to chat with: a name from `toklip models`, a folder, or owner/name on the hub. "
    "[default: toklip-uni-tiny, from toklip-mllm]",
)
@named_model(
    "--generator",
    kind=None,
    help_text="Model that draws, if --model does not: a name from `toklip models`, or a folder. "
    "[default: that of toklip-gen]",
)
@click.option(
    "--toklip",
    default="toklip-tiny",
    show_default=True,
    shell_complete=names_or_files(matcher_names),
    help="TokLIP that says what tokens mean, and searches; a model without tokens only searches.",
)
@click.option(
    "--pictures",
    multiple=True,
    default=("scenes:validation?count=200",),
    show_default=True,
    help="Pictures to search: a folder, file, tar or token store; repeatable. The page can read no others.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 lets others in.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=7860, show_default=True, help="Port; 0 takes any that is free."
)
@click.option("--browser/--no-browser", default=True, help="Whether to open the page in a browser.  [default: open it]")
@max_pixels
@device
@click.pass_context
def app(ctx: click.Context, /, **options: Any) -> None:  # noqa: ANN401 - as click gives them
    """Open a page to chat, look at tokens, search and compare tokenizers.

    The page is served by this machine, to itself alone unless --host says otherwise, and loads nothing from elsewhere.
    With the models in the packages it needs no network. It prints its address; Ctrl-C ends it, with status 130, and
    deletes what was uploaded or drawn, which happens to each picture after a day. Needs the extra toklip-core[app].
    """
    from toklip_core.demo.app import AppSettings, serve_app
    from toklip_core.training import stop_on_signals

    settings = AppSettings(compute=compute_of(options, progress=False), **options)
    with stop_on_signals() as stop:
        serve_app(settings, registry_of(ctx), stop=stop, say=lambda address: click.echo(f"toklip app: {address}"))
    raise SystemExit(stop.exit_status)
