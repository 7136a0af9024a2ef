"""Groups of commands, to which plugins add theirs on first use; users' errors become one line."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import click

from toklip_core.files import is_machine_error, one_line
from toklip_core.plugins import Plugin, Registry, reason, registry

#: Group -> command -> package that has the command, for messages if the package is missing.
_ELSEWHERE = {
    "cli": {"ask": "toklip-mllm", "chat": "toklip-mllm", "generate": "toklip-gen"},
    "train": {"vq": "toklip-vq", "mllm": "toklip-mllm", "generator": "toklip-gen"},
    "evaluate": {"vqa": "toklip-mllm", "generation": "toklip-gen"},
}


@dataclass(frozen=True)
class Commands:
    """Commands of plugins, by group and name, and reasons why plugins are left out."""

    groups: dict[str, dict[str, click.Command]]
    errors: dict[Plugin, str]


@cache
def plugin_commands(found: Registry, root: click.Group) -> Commands:
    """Return the commands of plugins; all commands of a plugin that fails are left out, with the reason.

    A plugin fails if its hook raises, or if it uses the name of an existing command.

    Args:
        found: the plugins.
        root: the outermost group, ``toklip`` itself. Plugins may add to it and to the groups below it.
    """
    groups = [root, *(group for group in root.commands.values() if isinstance(group, PluginGroup))]
    taken = {group.name or "": dict(group.commands) for group in groups}
    added: dict[str, dict[str, click.Command]] = {name: {} for name in taken}
    errors: dict[Plugin, str] = {}
    for plugin in found.plugins:
        if plugin.hook is None:
            continue
        # Separate groups, so that a plugin can neither replace nor remove commands of others.
        asked = {name: click.Group(name) for name in taken}
        try:
            with contextlib.redirect_stdout(sys.stderr):
                plugin.hook.toklip_register_commands(**asked)
            _refuse_taken_commands(asked, taken)
        except KeyboardInterrupt:
            raise
        except BaseException as failure:  # as in discovery: no plugin may end `toklip`
            errors[plugin] = reason(failure)
            continue
        for name, group in asked.items():
            taken[name] |= group.commands
            added[name] |= group.commands
    return Commands(added, errors)


def _refuse_taken_commands(asked: dict[str, click.Group], taken: dict[str, dict[str, click.Command]]) -> None:
    for name, group in asked.items():
        for command in group.commands:
            if command in taken[name]:
                place = "toklip" if name == "cli" else f"toklip {name}"
                raise ValueError(f"the command `{place} {command}` exists already")


class PluginGroup(click.Group):
    """A group with its own commands and those of plugins, which are loaded when it is first used.

    Its name is an argument of ``toklip_register_commands``. Plugins come from the Registry in the
    context's object (``CliRunner().invoke(cli, [...], obj=discover([...]))``), or else from :func:`registry`.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, those of plugins included."""
        return sorted({*super().list_commands(ctx), *self._added(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command; if its package is missing, raise a UsageError that says what to install."""
        command = super().get_command(ctx, cmd_name) or self._added(ctx).get(cmd_name)
        package = _ELSEWHERE[self.name or ""].get(cmd_name)
        if command is None and package is not None:
            raise click.UsageError(self._way_out(ctx, cmd_name, package))
        return command

    def _added(self, ctx: click.Context) -> dict[str, click.Command]:
        root = ctx.find_root().command
        assert isinstance(root, click.Group)
        return plugin_commands(registry_of(ctx), root).groups[self.name or ""]

    def _way_out(self, ctx: click.Context, cmd_name: str, package: str) -> str:
        says = f"`{ctx.command_path} {cmd_name}` comes with {package}, which"
        if any(plugin.distribution == package for plugin in registry_of(ctx).plugins):
            return f"{says} is installed but does not offer it: see `toklip plugins`"
        return f"{says} is not installed: pip install {package}"


class ErrorsAsLines(PluginGroup):
    """The outermost group: ValueError, LookupError, OSError and a lack of memory become one line, with exit status 1.

    These are the errors of users. A bug that raises one of them, such as KeyError, becomes a line, too; all other
    exceptions keep their traceback.
    """

    def make_context(self, *args: Any, **extra: Any) -> click.Context:  # noqa: ANN401 - as of click
        """Read the command line; Ctrl-C also works while plugins are loaded."""
        with _interruption():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> object:
        """Run a command."""
        if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
            # A file's name may have bytes that are not text. They must not cost the result of a long evaluation.
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            with _interruption():
                return super().invoke(ctx)
        except BrokenPipeError:
            raise  # `toklip ... | head`: click ends quietly.
        except Exception as error:
            if not isinstance(error, ValueError | LookupError | OSError) and not is_machine_error(error):
                raise
            raise click.ClickException(_one_line(error)) from error


@contextlib.contextmanager
def _interruption() -> Iterator[None]:
    """Exit on Ctrl-C with one line and status 130, as shells do; click would exit with 1."""
    try:
        yield
    except KeyboardInterrupt as error:
        click.echo("Interrupted.", err=True)
        raise click.exceptions.Exit(128 + signal.SIGINT) from error


def _one_line(error: Exception) -> str:
    if isinstance(error, FileExistsError) and error.filename:  # from mkdir, which only says "File exists"
        return f"{error.filename} is a file, and a folder is wanted there; name another one"
    if isinstance(error, MemoryError):  # Python's own says nothing
        return one_line(f"there is not enough memory{f': {error}' if str(error) else ''}")
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)  # str(KeyError) is a repr
    return one_line(text) or type(error).__name__


def registry_of(ctx: click.Context) -> Registry:
    """Return the plugins that a caller put into the context, else those that are installed."""
    return ctx.find_object(Registry) or registry()
