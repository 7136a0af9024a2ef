"""What each token of a picture says: its place, its VQ ids, and the texts that it matches best."""

from __future__ import annotations

from typing import NamedTuple

from jinja2 import Environment, StrictUndefined
from PIL import Image, ImageDraw

from toklip_core.evaluation import Explanation
from toklip_core.scenes import CLASSES

_SCENES = [f"an {name}" if name[0] in "aeiou" else f"a {name}" for name in CLASSES]
_PHOTOGRAPHS = [
    f"a photo of {what}"
    for what in (
        *("a person", "a face", "a dog", "a cat", "a bird", "a car", "a tree", "grass", "the sky", "water"),
        *("a building", "food", "a flower", "text", "a room"),
    )
]
_LINE, _MARK = (255, 255, 255, 110), (234, 88, 12)

_TOKEN = Environment(autoescape=True, undefined=StrictUndefined).from_string("""\
<div class="token"><b>Token {{ number }}</b> of {{ count }} &middot; row {{ row }}, column {{ column }} &middot;
VQ id{{ "s" if ids | length > 1 }} {% for one in ids %}<code>{{ one }}</code> {% else %}of a pyramid{% endfor %}</div>
<table class="matches">{% for match in matches %}<tr><td>{{ match.text }}</td>
<td><div class="bar" style="width: {{ (100 * match.share) | round(1) }}%"></div></td>
<td>{{ "%.3f" | format(match.cosine) }}</td></tr>{% endfor %}</table>
<p class="note">Cosines of this token, pooled alone; the best {{ matches | length }} of {{ texts }} texts.
{{ "It has seen its own code, and those above it and left of it in its row." if causal }}</p>
""")


class Cell(NamedTuple):
    """A place in the grid of tokens, counted from 0."""

    row: int
    column: int


class TokenView(NamedTuple):
    """A picture file, and the match of its tokens with texts."""

    file: str
    explanation: Explanation


class TokenMark(NamedTuple):
    """The token that was clicked on last, and the file of its picture."""

    file: str
    cell: Cell


class TextMatch(NamedTuple):
    """A text, and how well a token matches it."""

    text: str
    cosine: float
    #: Place of the cosine between the smallest and the largest of the picture, in [0, 1].
    share: float


def texts_for(model: str) -> list[str]:
    """Return texts to compare with, for a TokLIP by its name: the classes of Scenes, or what many photographs show."""
    return _SCENES if model == "toklip-tiny" else _PHOTOGRAPHS


def cell_at(explanation: Explanation, x: float, y: float) -> Cell:
    """Return the cell of a point of ``explanation.image``, in pixels."""
    rows, columns = explanation.values.shape[1:]
    width, height = explanation.image.size
    return Cell(min(rows - 1, int(y * rows / height)), min(columns - 1, int(x * columns / width)))


def marked_cell(view: TokenView, mark: TokenMark | None) -> Cell:
    """Return the cell that was clicked on in this picture, or else that of the largest cosine of all."""
    if mark is not None and mark.file == view.file:
        return mark.cell
    explanation = view.explanation
    return Cell(*divmod(int(explanation.values.amax(0).argmax()), explanation.values.shape[2]))


def matches_of(explanation: Explanation, cell: Cell, count: int = 8) -> list[TextMatch]:
    """Return the texts that a token matches best, best first."""
    values = explanation.values[:, cell.row, cell.column]
    low, high = float(explanation.values.min()), float(explanation.values.max())
    best = values.argsort(descending=True, stable=True)[:count].tolist()
    return [
        TextMatch(explanation.texts[i], float(values[i]), (float(values[i]) - low) / ((high - low) or 1)) for i in best
    ]


def draw_grid(explanation: Explanation, cell: Cell) -> Image.Image:
    """Return the picture with lines between its tokens, and a frame around one of them."""
    image = explanation.image.copy()
    rows, columns = explanation.values.shape[1:]
    pen = ImageDraw.Draw(image, "RGBA")
    xs = [round(i * image.width / columns) for i in range(columns + 1)]
    ys = [round(i * image.height / rows) for i in range(rows + 1)]
    for x in xs[1:-1]:
        pen.line((x, 0, x, image.height), _LINE)
    for y in ys[1:-1]:
        pen.line((0, y, image.width, y), _LINE)
    box = (xs[cell.column], ys[cell.row], xs[cell.column + 1] - 1, ys[cell.row + 1] - 1)
    pen.rectangle(box, outline=_MARK, width=4)
    return image


def describe_token(explanation: Explanation, cell: Cell) -> str:
    """Return what a token says as HTML: its place, its VQ ids, and the texts that it matches best."""
    rows, columns = explanation.values.shape[1:]
    # The ids of a pyramid belong to no single cell.
    ids = explanation.ids[cell.row, cell.column].tolist() if explanation.ids.shape[:2] == (rows, columns) else []
    return _TOKEN.render(
        number=cell.row * columns + cell.column + 1,
        count=rows * columns,
        row=cell.row + 1,
        column=cell.column + 1,
        ids=ids,
        matches=matches_of(explanation, cell),
        texts=len(explanation.texts),
        causal=explanation.causal,
    )
