"""The plugin of toklip-gen: its generators and its commands. It does not import torch."""

from __future__ import annotations

import click
from toklip_core.plugins import NamedModel, hookimpl

from toklip_gen.commands import evaluate_generation, generate, train_generator
from toklip_gen.published import generators


@hookimpl
def toklip_register_models() -> list[NamedModel]:
    """Return the generators that have a name."""
    return list(generators().values())


@hookimpl
def toklip_register_commands(cli: click.Group, train: click.Group, evaluate: click.Group) -> None:
    """Add the commands of this package."""
    cli.add_command(generate)
    train.add_command(train_generator)
    evaluate.add_command(evaluate_generation)
