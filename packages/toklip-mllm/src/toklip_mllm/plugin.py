"""The plugin of toklip-mllm: its model and its commands. It does not import torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from toklip_core.plugins import NamedModel, PictureModel, hookimpl

from toklip_mllm.commands import ask, chat, train_mllm, vqa
from toklip_mllm.published import tiny

if TYPE_CHECKING:
    import torch


@hookimpl
def toklip_register_models() -> list[NamedModel]:
    """Return the language model that ships with the package; folders of its kind may hold models that draw."""
    return [replace(tiny(), load_folder=_load_folder)]


def _load_folder(folder: Path | str, *, device: torch.device | str, dtype: torch.dtype | None) -> PictureModel:
    from toklip_mllm.drawing import load_drawer

    return load_drawer(folder, device=device, dtype=dtype)


@hookimpl
def toklip_register_commands(cli: click.Group, train: click.Group, evaluate: click.Group) -> None:
    """Add the commands of this package."""
    cli.add_command(ask)
    cli.add_command(chat)
    train.add_command(train_mllm)
    evaluate.add_command(vqa)
