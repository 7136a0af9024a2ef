"""The plugin of toklip-mllm: its models and its commands. It does not import torch."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
from toklip_core.plugins import ChatStarter, NamedModel, PictureModel, hookimpl

from toklip_mllm.commands import ask, chat, train_mllm, vqa
from toklip_mllm.published import UNIFIED_NAME, published_models

if TYPE_CHECKING:
    import torch


@hookimpl
def toklip_register_models() -> list[NamedModel]:
    """Return the language models that ship with the package; folders of their kind may hold models that draw."""
    models = [replace(model, load_folder=_load_folder, chat=_load_chat) for model in published_models()]
    return [replace(model, load=_LOADERS.get(model.name)) for model in models]


def _load_folder(folder: Path | str, *, device: torch.device | str, dtype: torch.dtype | None) -> PictureModel:
    from toklip_mllm.drawing import load_drawer

    return load_drawer(folder, device=device, dtype=dtype)


def _load_chat(name: Path | str, *, device: torch.device | str) -> ChatStarter:
    from transformers.utils import logging

    from toklip_mllm.chat import Chat, ChatSettings
    from toklip_mllm.model import load_language_model

    logging.disable_progress_bar()
    model, processor = load_language_model(name, device=device)
    return lambda seed: Chat(model, processor, ChatSettings(seed=seed))


#: Models in the package that draw, by name.
_LOADERS = {UNIFIED_NAME: partial(_load_folder, UNIFIED_NAME)}


@hookimpl
def toklip_register_commands(cli: click.Group, train: click.Group, evaluate: click.Group) -> None:
    """Add the commands of this package."""
    cli.add_command(ask)
    cli.add_command(chat)
    train.add_command(train_mllm)
    evaluate.add_command(vqa)
