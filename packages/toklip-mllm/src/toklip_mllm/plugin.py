"""The plugin of toklip-mllm: its model and its commands. It does not import torch."""

from __future__ import annotations

import click
from toklip_core.plugins import NamedModel, hookimpl

from toklip_mllm.commands import ask, train_mllm, vqa
from toklip_mllm.published import tiny


@hookimpl
def toklip_register_models() -> list[NamedModel]:
    """Return the language model that ships with the package."""
    return [tiny()]


@hookimpl
def toklip_register_commands(cli: click.Group, train: click.Group, evaluate: click.Group) -> None:
    """Add the commands of this package."""
    cli.add_command(ask)
    train.add_command(train_mllm)
    evaluate.add_command(vqa)
