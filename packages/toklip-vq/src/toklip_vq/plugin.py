"""The plugin of toklip-vq: its tokenizers, its models and its command. It does not import torch."""

from __future__ import annotations

import click
from toklip_core.plugins import NamedModel, TokenizerSpec, hookimpl

from toklip_vq.commands import train_vq
from toklip_vq.specs import named_models, tokenizer_specs


@hookimpl
def toklip_register_tokenizers() -> list[TokenizerSpec]:
    """Return the tokenizers of this package."""
    return tokenizer_specs()


@hookimpl
def toklip_register_models() -> list[NamedModel]:
    """Return the models of this package."""
    return named_models()


@hookimpl
def toklip_register_commands(train: click.Group) -> None:
    """Add the commands of this package."""
    train.add_command(train_vq)
