"""The page of `toklip demo`: one HTML file that loads nothing, light or dark as the reader's browser is."""

from __future__ import annotations

import base64
import mimetypes
import shlex
from collections.abc import Callable, Sequence
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from toklip_core.demo.chapters import PHOTOGRAPH, ROW, SCENE, STORE, Chapter, Shown
from toklip_core.store import TokenStore

_STYLE = """
:root { color-scheme: light dark; --page: #fbfaf8; --ink: #1f2328; --faint: #5b6470; --card: #fff; --line: #dcd9d2;
  --code: #f1efea; --mark: #8a3ffc; }
@media (prefers-color-scheme: dark) { :root { --page: #15171a; --ink: #e6e4df; --faint: #a3a9b2; --card: #1d2024;
  --line: #363a41; --code: #24282d; --mark: #be95ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 70rem; background: var(--page); color: var(--ink);
  font: 1rem/1.55 system-ui, sans-serif; }
h1 { font-size: 2.1rem; line-height: 1.2; margin: 0 0 .6rem; }
h2 { font-size: 1.35rem; line-height: 1.3; margin: 0 0 .4rem; }
h3 { font-size: 1rem; margin: 0 0 .5rem; }
h2 span { color: var(--mark); }
p { margin: 0 0 1rem; max-width: 46rem; }
section { border-top: 1px solid var(--line); margin-top: 2.2rem; padding-top: 1.8rem; }
img { display: block; max-width: 100%; border-radius: 6px; }
img.small { image-rendering: pixelated; }
figure { margin: 0; }
figcaption, footer { color: var(--faint); font-size: .875rem; }
figcaption { margin-top: .35rem; }
figure.ids { max-width: 21rem; width: 100%; }
.row { display: flex; flex-wrap: wrap; gap: 1.25rem; align-items: flex-start; margin: 0 0 1.2rem; }
.wide { overflow-x: auto; margin-bottom: 1.2rem; }
.wide img { min-width: 40rem; width: 100%; }
pre { background: var(--code); border-radius: 6px; padding: .75rem .9rem; margin: 0 0 .8rem; overflow-x: auto;
  font: .82rem/1.5 ui-monospace, monospace; }
pre.run { white-space: pre-wrap; overflow-wrap: anywhere; }
pre b { color: var(--mark); font-weight: 600; user-select: none; }
.out { color: var(--faint); }
.hero { display: grid; grid-template-columns: minmax(0, 21rem) minmax(0, 1fr); gap: 1.5rem; margin-top: 1.6rem; }
@media (max-width: 46rem) { .hero { grid-template-columns: minmax(0, 1fr); } }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); gap: 1rem; }
.card { display: flex; flex-direction: column; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; padding: .9rem 1rem; }
.card p { margin: 0; color: var(--faint); font-size: .875rem; }
.card img { width: 10.5rem; margin-bottom: .5rem; }
.card p.says { color: inherit; font-size: 1rem; }
.card .says { display: flex; justify-content: space-between; gap: 1rem; padding: .22rem 0; line-height: 1.35;
  border-bottom: 1px solid var(--line); }
.card .says b { white-space: nowrap; }
table.ids { border-collapse: separate; border-spacing: 2px; width: 100%; max-width: 21rem; table-layout: fixed;
  font: .74rem/1 ui-monospace, monospace; }
table.ids td { text-align: center; padding: 0; height: 2.2rem; border-radius: 4px; }
.absent { border: 1px dashed var(--line); border-radius: 10px; padding: .9rem 1rem; color: var(--faint); }
code { font-family: ui-monospace, monospace; font-size: .9em; }
.card a { margin-top: auto; padding-top: .5rem; font-size: .875rem; }
a { color: var(--mark); }
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Visual tokens that speak: toklip demo</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>Visual tokens that speak</h1>
<p>A picture becomes a small grid of whole numbers. Whatever comes next reads or writes these very numbers: the
tokenizer that gives the picture back, an encoder that compares it with texts, a language model that answers questions
about it, and a generator that draws. This page was made by <code>toklip demo</code>, without a network, with models of
a few megabytes that are in the packages and often wrong. Every command below was run as it stands, and what it printed
is what you see.</p>
{hero}
</header>
<main>
{chapters}
</main>
<footer><p>Made by toklip {version} in {seconds:.0f} seconds. Scene, texts and seeds were chosen because they work; the
rates beside them are those of many scenes, from docs/results.md. The commands work in any empty folder that has
{photograph} in it, and <code>toklip demo --folder FOLDER</code> leaves one. The photograph shows Grace Hopper, by
James S. Davis, United States Navy, 1984, in the public domain.</p></footer>
</body>
</html>
"""


class Told(NamedTuple):
    """A chapter that was run."""

    chapter: Chapter
    #: What each command printed; none if packages are missing.
    outputs: tuple[str, ...]
    missing: tuple[str, ...]


def page_of(told: Sequence[Told], folder: Path, *, seconds: float) -> str:
    """Return the HTML of chapters; the pictures that they show are in the folder."""
    chapters = "\n".join(_section(number, one, folder) for number, one in enumerate(told, start=1))
    return _PAGE.format(
        style=_STYLE,
        hero=_hero({one.chapter.name: one for one in told}, folder),
        chapters=chapters,
        version=version("toklip-core"),
        seconds=seconds,
        photograph=PHOTOGRAPH,
    )


def comes_with(missing: Sequence[str]) -> str:
    """Return the line that stands for a chapter whose packages are missing."""
    return f"comes with {' and '.join(missing)}: pip install {' '.join(missing)}"


def _section(number: int, told: Told, folder: Path) -> str:
    chapter = told.chapter
    parts = [
        f'<section id="{chapter.name}">',
        f"<h2><span>{number}</span> {escape(chapter.title)}</h2>",
        f"<p>{escape(chapter.text)}</p>",
    ]
    if told.missing:
        parts.append(f'<p class="absent">{escape(comes_with(told.missing))}</p>')
    else:
        parts += _shown(chapter, folder)
        calls = zip(chapter.commands, told.outputs, strict=True)
        transcript = "\n".join(_transcript(words, output) for words, output in calls)
        parts += [f'<pre class="run">{transcript}</pre>', f"<pre>{escape(chapter.python.rstrip())}</pre>"]
    return "\n".join([*parts, "</section>"])


def _shown(chapter: Chapter, folder: Path) -> list[str]:
    wide = [picture for picture in chapter.pictures if picture.path.endswith(".webp")]
    beside = [_figure(picture, folder) for picture in chapter.pictures if picture not in wide]
    if chapter.numbers:
        beside.insert(1, _numbers(folder))
    found = [f'<div class="row">{"".join(beside)}</div>'] if beside else []
    return found + [f'<div class="wide">{_figure(picture, folder)}</div>' for picture in wide]


def _transcript(words: Sequence[str], output: str) -> str:
    printed = f'\n<span class="out">{escape(output.rstrip())}</span>' if output.strip() else ""
    return f"<b>$</b> {escape(shlex.join(['toklip', *words]))}{printed}"


def _hero(told: dict[str, Told], folder: Path) -> str:
    """The scene and its numbers, and what each of the four models makes of them; empty if there is no scene."""
    if told["scene"].missing:
        return ""
    again, continued = told["scene"].chapter.pictures[1], told["generate"].chapter.pictures[0]
    cards = [
        _card(told["scene"], "The tokenizer gives the picture back", lambda _: _image(again, folder)),
        _card(told["classify"], "The encoder compares it with texts", _labels),
        _card(told["ask"], "The language model is asked about it", _answers),
        _card(told["generate"], "The generator goes on from its upper half", lambda _: _image(continued, folder)),
    ]
    return (
        f'<div class="hero"><div><h3>One scene, and its 64 numbers</h3><div class="row">'
        f"{_image(Shown(SCENE, 'A scene'), folder)}</div>{_numbers(folder)}</div>"
        f'<div><h3>Four models that read these very numbers</h3><div class="cards">{"".join(cards)}</div></div></div>'
    )


def _card(told: Told, title: str, shown: Callable[[Told], str]) -> str:
    if told.missing:
        return f'<div class="card absent"><h3>{escape(title)}</h3>{escape(comes_with(told.missing))}</div>'
    link = f'<a href="#{told.chapter.name}">how it is done</a>'
    return f'<div class="card"><h3>{escape(title)}</h3>{shown(told)}{link}</div>'


def _labels(told: Told) -> str:
    rows = [line.split(maxsplit=1) for line in told.outputs[0].splitlines() if "%" in line]
    return "".join(_says(label, share) for share, label in rows)


def _answers(told: Told) -> str:
    questions = [words[-1] for words in told.chapter.commands]
    return "".join(map(_says, questions, told.outputs)) + "<p>The last one is wrong.</p>"


def _says(what: str, found: str) -> str:
    return f'<p class="says">{escape(what)} <b>{escape(found.strip())}</b></p>'


def _numbers(folder: Path) -> str:
    """The ids of the scene as a table, each on the mean colour of what it gives back."""
    ids = TokenStore(folder / STORE)[ROW].ids
    with Image.open(folder / f"decoded/{SCENE}.png") as picture:
        cells = picture.convert("RGB").resize((ids.shape[1], ids.shape[0]), Image.Resampling.BOX)
    rows = []
    for y, row in enumerate(ids.tolist()):
        cell = [(number, cells.getpixel((x, y))) for x, number in enumerate(row)]
        rows.append("<tr>" + "".join(_cell(number, colour) for number, colour in cell) + "</tr>")
    return (
        f'<figure class="ids"><table class="ids">{"".join(rows)}</table>'
        "<figcaption>Its ids, each on the mean colour of what it gives back</figcaption></figure>"
    )


def _cell(number: int, colour: object) -> str:
    assert isinstance(colour, tuple)
    red, green, blue = colour
    ink = "#000" if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else "#fff"
    return f'<td style="background:rgb({red},{green},{blue});color:{ink}">{number}</td>'


def _figure(picture: Shown, folder: Path) -> str:
    return f"<figure>{_image(picture, folder)}<figcaption>{escape(picture.caption)}</figcaption></figure>"


def _image(picture: Shown, folder: Path) -> str:
    path = folder / picture.path
    with Image.open(path) as image:
        width, height = image.size
    if picture.small:
        scale = max(1, round(256 / height))
        width, height = width * scale, height * scale
    data = base64.b64encode(path.read_bytes()).decode()
    kind = mimetypes.types_map.get(path.suffix, "image/webp")
    small = ' class="small"' if picture.small else ""
    return (
        f'<img{small} src="data:{kind};base64,{data}" width="{width}" height="{height}" style="height:auto" '
        f'alt="{escape(picture.caption)}">'
    )
