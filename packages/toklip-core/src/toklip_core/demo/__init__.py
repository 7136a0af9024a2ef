"""A tour of the toolkit on one page: what `toklip demo` runs and writes.

    chapters.py  what is said and run      page.py  the HTML, from the template page.html
    app          toklip app, the page that answers

Every command is run in this process, in one working folder, and the page shows what it printed and drew.
"""

from __future__ import annotations

import contextlib
import io
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from importlib.resources import as_file, files
from pathlib import Path

import click

from toklip_core.demo.chapters import CHAPTERS, PHOTOGRAPH
from toklip_core.demo.page import ChapterOnPage, page_of
from toklip_core.files import replacing
from toklip_core.plugins import Registry


def write_demo(
    out: Path, folder: Path, *, commands: click.Group, found: Registry, say: Callable[[str], None]
) -> list[str]:
    """Run all chapters whose packages are installed, write the page, and return the packages that are missing.

    The process works in the folder meanwhile.

    Args:
        out: the HTML file; written beside, and renamed at the end.
        folder: where the commands work; empty, or made.
        commands: the group of all commands, ``toklip`` itself.
        found: the plugins that are installed.
        say: function that receives progress lines.

    Raises:
        ValueError: ``out`` is a folder or has the suffix of another kind of file, or the folder is not empty.
        OSError: one of them cannot be written.
    """
    out, folder = out.absolute(), folder.absolute()
    if out.is_dir():
        raise ValueError(f"got --out {out}, which is a folder; name a file, such as {out / 'demo.html'}")
    if out.suffix.lower() not in ("", ".html", ".htm"):
        raise ValueError(f"got --out {out}, but the page is HTML; name a file such as {out.with_suffix('.html')}")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {out.parent} to write {out.name} into; make it first")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ValueError(f"the folder {folder} is not empty; name an empty or a new one")
    with replacing(out) as beside:
        beside.touch()  # what cannot be written is known before the work
        started = time.perf_counter()
        chapters = _run(folder, commands, found, say)
        beside.write_text(page_of(chapters, folder, seconds=time.perf_counter() - started), encoding="utf-8")
    return sorted({package for chapter in chapters for package in chapter.missing})


def _run(
    folder: Path, commands: click.Group, found: Registry, say: Callable[[str], None]
) -> list[ChapterOnPage]:
    """Run the chapters, one after another."""
    installed = {plugin.distribution for plugin in found.plugins if not plugin.error}
    with as_file(files(__name__) / PHOTOGRAPH) as photograph:
        shutil.copy(photograph, folder / PHOTOGRAPH)
    run = []
    with contextlib.chdir(folder):
        for number, chapter in enumerate(CHAPTERS, start=1):
            missing = tuple(package for package in chapter.packages if package not in installed)
            left_out = f" (left out: it comes with {' and '.join(missing)})" * bool(missing)
            say(f"{number}/{len(CHAPTERS)} {chapter.title}{left_out}")
            outputs = () if missing else tuple(_output(words, commands, found) for words in chapter.commands)
            run.append(ChapterOnPage(chapter, outputs, missing, folder))
    return run


def _output(words: Sequence[str], commands: click.Group, found: Registry) -> str:
    """Return what a command prints on stdout and stderr.

    Raises:
        KeyboardInterrupt: Ctrl-C stopped it.
        ClickException: another signal did; errors of the command itself are raised as they are.
    """
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        try:
            status = commands.main(list(words), prog_name="toklip", standalone_mode=False, obj=found)
        except SystemExit as end:
            status = end.code
    if status == 128 + signal.SIGINT:  # which click returns, when a command was interrupted
        raise KeyboardInterrupt
    if status:
        raise click.ClickException(f"`toklip {shlex.join(words)}` was stopped")
    return printed.getvalue()
