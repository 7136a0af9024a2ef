"""Types of options that several commands have, and names that a shell completes. Imports no more than click."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import fields
from functools import partial
from typing import Any, TypeVar

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from toklip_core.config import (
    LARGEST_COUNT,
    LARGEST_MAX_PIXELS,
    LARGEST_SEED,
    MAX_PIXELS,
    MOST_WORKERS,
    Compute,
    default_device,
    default_workers,
)

_Function = TypeVar("_Function", bound=Callable[..., Any])


class PathName(click.Path):
    """Name of a file or folder. An empty one, such as of an unset variable of a shell, would be the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401 - as of click
        """Return the path; a usage error if it is empty."""
        if value == "":
            self.fail("got an empty name; name a file or folder", param, ctx)
        return super().convert(value, param, ctx)


#: Counts, from 1 on.
COUNT = click.IntRange(1, LARGEST_COUNT)
#: Numbers and counts, from 0 on.
NUMBER = click.IntRange(0, LARGEST_COUNT)
#: Side of a picture in pixels, up to one that fits into memory.
SIDE = click.IntRange(1, 2**14)
#: Number of processes that read pictures; 0 reads in the main process.
WORKERS = click.IntRange(0, MOST_WORKERS)
SEED = click.IntRange(0, LARGEST_SEED)

#: Option for the maximum pixels of a picture.
max_pixels = click.option(
    "--max-pixels",
    type=click.IntRange(1, LARGEST_MAX_PIXELS),
    default=MAX_PIXELS,
    show_default=True,
    help="Maximum number of pixels (width x height) of a picture; reading takes up to 19 bytes of memory per pixel.",
)
resize = click.option(
    "--resize",
    type=click.Choice(["crop", "squash", "pad"]),
    default="crop",
    show_default=True,
    help="How a picture is made square: crop takes the centre, squash ignores the aspect ratio, pad adds grey.",
)
lpips = click.option(
    "--lpips",
    type=click.Choice(["alex", "squeeze", "vgg"]),
    default="alex",
    show_default=True,
    help="Backbone network of the LPIPS metric.",
)
device = click.option("--device", help="Device to compute on, such as cpu or cuda:1. [default: a GPU if there is one]")
as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
temperature = partial(
    click.option,
    "--temperature",
    type=float,
    show_default=True,
    help="Sampling temperature; 0 always takes the most likely token or id (greedy).",
)
top_p = click.option(
    "--top-p",
    type=float,
    default=1.0,
    show_default=True,
    help="Nucleus sampling: sample from the most likely tokens or ids that reach this probability together; 1 is all.",
)


def batch_size(what: str, *, default: int = 32) -> Callable[[_Function], _Function]:
    """Return the option for a batch size; ``what`` says what it counts, such as "pictures per batch"."""
    return click.option("--batch-size", type=COUNT, default=default, show_default=True, help=f"Number of {what}.")


def dtype(help_text: str, *, default: str | None = "float32") -> Callable[[_Function], _Function]:
    """Return the option for a dtype, float32 or bfloat16; the default None means the model's own."""
    kinds = click.Choice(["float32", "bfloat16"])
    return click.option("--dtype", type=kinds, default=default, show_default=default is not None, help=help_text)


def named_model(
    *names: str, kind: str | None, help_text: str, default: str | None = None
) -> Callable[[_Function], _Function]:
    """Return the option for a model of plugins; the shell completes the names of its kind.

    Args:
        names: names of the option, then that of the parameter.
        kind: as :class:`toklip_core.plugins.NamedModel` has it; None: all models that draw.
        help_text: help of the option.
        default: name of the model that is taken if none is given.
    """
    complete = names_or_files(_names_of_kind(kind))
    return click.option(
        *names, default=default, show_default=default is not None, shell_complete=complete, help=help_text
    )


def compute_of(options: dict[str, Any], *, progress: bool = True) -> Compute:
    """Remove the options about computing from a command's options, and return them as one value.

    By default they are this machine's accelerator, and a process per core.
    """
    named = {field.name: options.pop(field.name) for field in fields(Compute) if field.name in options}
    if named.get("device", "") is None:
        named["device"] = default_device()
    if named.get("workers", 0) is None:
        named["workers"] = default_workers()
    return Compute(progress=progress, **named)


def refuse_unused(ctx: click.Context, names: Collection[str], why: str, *, instead: str = "") -> None:
    """Refuse arguments and options that were typed but have no effect, unless they have their default value.

    Args:
        ctx: context of the command.
        names: names of the parameters without effect.
        why: end of the sentence "--option has no effect ...", such as "with --list".
        instead: what would give them an effect, such as "give --prefix"; otherwise the message says to leave them out.

    Raises:
        click.UsageError: one of them was typed with another value than its default; the message names all that were.
    """
    typed = [
        parameter.opts[0] if isinstance(parameter, click.Option) else parameter.human_readable_name
        for parameter in ctx.command.params
        if parameter.name in names
        and ctx.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
        and ctx.params[parameter.name] != parameter.get_default(ctx)
    ]
    if typed:
        has, it = ("has", "it") if len(typed) == 1 else ("have", "them")
        way = f"{instead}, or leave" if instead else "leave"
        raise click.UsageError(f"{', '.join(typed)} {has} no effect {why}; {way} {it} out")


_Completion = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def names_or_files(names: Callable[[], Iterable[str]]) -> _Completion:
    """Return a ``shell_complete`` function for an option that takes a name or a path."""

    def complete(ctx: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
        found = [CompletionItem(name) for name in sorted(names()) if name.startswith(begun)]
        return found or [CompletionItem(begun, type="file")]

    return complete


def tokenizer_names() -> list[str]:
    """Return the names of the VQ tokenizers that the installed plugins offer."""
    from toklip_core.plugins import registry

    return [*registry().tokenizers]


def toklip_names() -> list[str]:
    """Return the names and aliases of the TokLIPs."""
    from toklip_core.model import ALIASES, models

    return [*(spec.name for spec in models().values() if spec.kind == "TokLIP"), *ALIASES]


def matcher_names() -> list[str]:
    """Return the names of the models that compare pictures with texts: TokLIPs, CLIPs, and models of plugins."""
    from toklip_core.model import ALIASES, models
    from toklip_core.plugins import registry

    return [*models(), *ALIASES, *(model.name for model in registry().models.values() if model.match is not None)]


def _names_of_kind(kind: str | None) -> Callable[[], list[str]]:
    """Return a function that lists plugins' models of a kind, or those that draw."""

    def names() -> list[str]:
        from toklip_core.plugins import registry

        models = registry().models.values()
        return [model.name for model in models if (model.load is not None if kind is None else model.kind == kind)]

    return names
