"""Draws the figures of photographs through tokenizers.

    python docs/figure.py

docs/pictures/tokens.jpg, in README.md: photographs, their ids, and what the ids give back. An id is coloured by the
first three principal components of the codebook, so that like codes look alike.
docs/pictures/compared.jpg, in docs/how-to/compare-tokenizers.md: the sheet of `toklip compare tokenizers`.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch
from PIL import Image
from toklip_core import Tokenizer, load_tokenizer
from toklip_core.evaluation import compare_tokenizers, draw_comparison
from toklip_core.pictures import open_picture, to_picture, to_pixels
from torch import Tensor

DOCS = Path(__file__).parent
#: The first is not among those that llamagen-tiny was trained on.
PHOTOGRAPHS = ("admiral", "cat", "coffee", "rocket")
COMPARED = ("llamagen-tiny", "toy", "toy-residual")
SIDE = 256
GAP = 8


def main() -> None:
    """Write the figures."""
    (DOCS / "pictures").mkdir(exist_ok=True)
    draw_tokens()
    draw_compared()


def draw_compared() -> None:
    """Write the sheet of photographs through the tokenizers that need no download."""
    with contextlib.chdir(DOCS.parent):  # so that names of pictures are those that a reader types
        comparison = compare_tokenizers(COMPARED, ["docs/examples/photographs"], image_size=SIDE)
    sheet = draw_comparison(comparison)
    sheet.reduce(2).save(DOCS / "pictures/compared.jpg", quality=75, optimize=True)


def draw_tokens() -> None:
    """Write photographs above their ids and their reconstructions."""
    tokenizer = load_tokenizer("llamagen-tiny")
    colours = code_colours(tokenizer)
    columns = [column(tokenizer, colours, DOCS / f"examples/photographs/{name}.jpg") for name in PHOTOGRAPHS]
    step = SIDE + GAP
    figure = Image.new("RGB", (len(columns) * step - GAP, 3 * step - GAP), "white")
    for x, pictures in enumerate(columns):
        for y, picture in enumerate(pictures):
            figure.paste(picture, (x * step, y * step))
    figure.save(DOCS / "pictures/tokens.jpg", quality=85, optimize=True)


def column(tokenizer: Tokenizer, colours: Tensor, photograph: Path) -> tuple[Image.Image, Image.Image, Image.Image]:
    """Return a photograph, its ids as colours, and its reconstruction, squares of SIDE."""
    pixels = to_pixels(open_picture(photograph), SIDE)
    ids = tokenizer.encode(pixels[None])
    cells = to_picture(colours[ids[0, ..., 0]].permute(2, 0, 1)).resize((SIDE, SIDE), Image.Resampling.NEAREST)
    return to_picture(pixels), cells, to_picture(tokenizer.decode(ids)[0])


def code_colours(tokenizer: Tokenizer) -> Tensor:
    """Return a colour (K, 3) in [-1, 1] for each code."""
    codes = tokenizer.embed(torch.arange(tokenizer.codebook_sizes[0])[:, None])
    _, _, directions = torch.pca_lowrank(codes, q=3, niter=8)
    parts = (codes - codes.mean(0)) @ directions
    colours: Tensor = (parts / (2 * parts.std(0))).clamp(-1, 1)
    return colours


if __name__ == "__main__":
    main()
