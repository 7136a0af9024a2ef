"""Writes the reference pages that follow from the code: cli.md and config.md, and the table of tokenizers.md.

`python docs/generate.py` writes them, `--check` writes nothing and fails if a page is not what the code says.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import re
import sys
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from toklip_core.plugins import TokenizerSpec

REFERENCE = Path(__file__).parent / "reference"
PACKAGES = ("toklip_core", "toklip_vq", "toklip_mllm", "toklip_gen")
#: Modules that need another program, or an extra, to be imported.
ELSEWHERE = {"toklip_mllm.evaluation.lmms_eval", "toklip_core.demo.app.page"}
#: The markup of docstrings that Markdown does not know: :class:`X` is `X`.
_ROLE = re.compile(r":\w+:(?=`)")
#: What is between them in tokenizers.md is written here; the rest of that page is written by hand.
TABLE_BEGINS = "<!-- Written by docs/generate.py from the descriptions in toklip_vq/specs.py. -->\n\n"
TABLE_ENDS = "\n<!-- The end of the table. -->\n"
GENERATED = "<!-- Written by docs/generate.py; edit the code instead. -->\n\n"


def main() -> int:
    """Write the pages or check them; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="Write nothing; exit with 1 if a page is out of date.")
    check = parser.parse_args().check
    pages = {
        REFERENCE / "cli.md": cli_page(),
        REFERENCE / "config.md": config_page(),
        REFERENCE / "tokenizers.md": tokenizers_page(),
    }
    stale = [path for path, text in pages.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        if check:
            print(f"{path.name} is not what the code says: run `python docs/generate.py`", file=sys.stderr)
        else:
            path.write_text(pages[path])
    return int(check and bool(stale))


def tokenizers_page() -> str:
    """Return the page of the tokenizers, in which the table is that of their descriptions."""
    from toklip_vq.plugin import toklip_register_tokenizers

    page = (REFERENCE / "tokenizers.md").read_text()
    before, rest = page.split(TABLE_BEGINS)
    _, after = rest.split(TABLE_ENDS)
    names = ("name", "Q x K", "f", "size", "ids", "bits", "rFID", "licence", "published file (hub repository, file)")
    # The raw weights are in the file of the averaged ones, and are their only difference.
    specs = {spec.name: spec for spec in toklip_register_tokenizers()}
    shown = [spec for name, spec in specs.items() if name.removesuffix("-raw") == name]
    rows = [names, ("---",) * len(names), *(_tokenizer(spec, f"{spec.name}-raw" in specs) for spec in shown)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{before}{TABLE_BEGINS}{table}\n{TABLE_ENDS}{after}"


def _tokenizer(spec: TokenizerSpec, has_raw: bool) -> tuple[str, ...]:
    return (
        f"`{spec.name}`" + (", `-raw`" if has_raw else ""),
        spec.codebooks or "its own",
        "" if spec.factor is None else f"{spec.factor}",
        f"{spec.image_size}{' only' if spec.fixed_size else ''}",
        "" if spec.ids_per_picture is None else f"{spec.ids_per_picture:,}",
        "" if spec.bits_per_picture is None else f"{spec.bits_per_picture:,.0f}",
        spec.rfid,
        spec.licence or "yours",
        f"`{spec.source}`" if spec.source else "none",
    )


def cli_page() -> str:
    """Return the page of every command of `toklip`, with its arguments and options."""
    from toklip_core.cli import cli

    sections = [_command(context) for context in _contexts(click.Context(cli, info_name="toklip"))]
    return f"{GENERATED}# The command line\n\n" + "\n".join(sections)


def _contexts(context: click.Context) -> Iterator[click.Context]:
    yield context
    if isinstance(context.command, click.Group):
        for name in context.command.list_commands(context):
            command = context.command.get_command(context, name)
            # Commands of plugins that happen to be installed beside the packages are not part of the reference.
            if command is not None and (command.callback.__module__ or "").startswith(PACKAGES):
                yield from _contexts(click.Context(command, info_name=name, parent=context))


def _command(context: click.Context) -> str:
    command = context.command
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    lines = [f"## {context.command_path}", "", f"    {usage}", "", _help(command), ""]
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    rows = [_option(option, context) for option in options]
    if rows:
        lines += ["| option | default | |", "|---|---|---|", *rows, ""]
    return "\n".join(lines)


def _help(command: click.Command) -> str:
    # \b and \f are click's marks: "do not wrap this paragraph" and "the rest is not help".
    return _ROLE.sub("", cleandoc((command.help or "").split("\f")[0].replace("\b\n", "")))


def _option(option: click.Option, context: click.Context) -> str:
    info = option.to_info_dict()
    names = ", ".join(f"`{name}`" for name in [*info["opts"], *info["secondary_opts"]])
    kind = "" if option.is_flag else option.make_metavar(context)
    default = "required" if option.required else _default(info["default"])
    return f"| {f'{names} {_cell(kind)}'.strip()} | {default} | {_cell(info['help'] or '')} |"


def _default(value: object) -> str:
    # Newer releases of click mark "no default" with an object of their own.
    plain = isinstance(value, str | int | float | Path) and not isinstance(value, bool)
    return f"`{value}`" if plain else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def config_page() -> str:
    """Return the page of every config model of the packages, field by field."""
    sections = [_model(model) for model in _models()]
    introduction = (
        "These models describe the tables of a TOML file, every `config.json`, and the metadata of every token store. "
        "An unknown key is an error, also in `--set key=value`.\n"
    )
    return f"{GENERATED}# Configuration\n\n{introduction}\n" + "\n".join(sections)


def _models() -> list[type[BaseModel]]:
    found: dict[str, type[BaseModel]] = {}
    for package in map(importlib.import_module, PACKAGES):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name in ELSEWHERE:
                continue
            for member in vars(importlib.import_module(module.name)).values():
                if isinstance(member, type) and issubclass(member, BaseModel) and member.__module__ == module.name:
                    found[f"{module.name}.{member.__name__}"] = member
    named = (model for _, model in sorted(found.items()) if model.__name__.isidentifier())
    return [model for model in named if model.model_fields and not model.__name__.startswith("_")]


def _model(model: type[BaseModel]) -> str:
    lines = [f"## {model.__name__}", "", f"`{_offered_by(model)}.{model.__name__}`", ""]
    said = cleandoc(model.__doc__ or "").partition("\n>>>")[0].strip()  # the example is for who calls it from Python
    lines += [_ROLE.sub("", said), "", "| key | type | default | |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        bounds = ", ".join(filter(None, map(_bound, field.metadata)))
        kind = f"{_type(field.annotation)} {bounds}".strip()
        lines.append(f"| `{name}` | {_cell(kind)} | {_field_default(field)} | {_cell(field.description or '')} |")
    return "\n".join([*lines, ""])


def _offered_by(model: type[BaseModel]) -> str:
    """Return the folder that offers a model to the others, else the module that defines it."""
    folder = model.__module__.rpartition(".")[0]
    return folder if model.__name__ in getattr(importlib.import_module(folder), "__all__", ()) else model.__module__


def _bound(constraint: object) -> str:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "multiple_of": "multiple of", "min_length": "length >="}
    return ", ".join(f"{sign} {getattr(constraint, key)}" for key, sign in signs.items() if hasattr(constraint, key))


def _type(annotation: object) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{json.dumps(value)}`" for value in arguments)
    if origin is Annotated:
        return _type(arguments[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    kinds = " or ".join(dict.fromkeys(_type(item) for item in arguments if item is not ...))
    if origin in (list, tuple):
        return f"list of {kinds}"
    if arguments:
        return kinds
    name = getattr(annotation, "__name__", str(annotation))
    return {"NoneType": "none", "str": "text", "Path": "path", "bool": "true or false"}.get(name, name)


def _field_default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or value is None:
        return ""
    if isinstance(value, BaseModel):
        return "its defaults"
    return f"`{json.dumps(value, default=str)}`"


if __name__ == "__main__":
    sys.exit(main())
