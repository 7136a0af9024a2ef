"""Draws the figures of photographs through tokenizers, and of captions that a generator draws.

    python docs/figure.py

docs/pictures/tokens.jpg, in README.md: photographs, their codes, and what the ids give back. A code is coloured by the
first three principal components of all of them, so that like codes look alike.
docs/pictures/compared.jpg, in docs/how-to/compare-tokenizers.md: the sheet of `toklip compare tokenizers`.
docs/pictures/captions.jpg, in docs/results/generation.md: the first captions of validation scenes, each with the
picture that `toklip generate` draws for it, and how many of them the pixels show to be right.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch
from PIL import Image
from toklip_core import load_tokenizer
from toklip_core.evaluation import compare_tokenizers, draw_comparison
from toklip_core.pictures import PANEL_SIDE, open_picture, picture_sheet, to_picture, to_pixels
from toklip_gen import load_generator
from toklip_gen.evaluation import match_by_pixels, scene_prompts
from torch import Tensor

DOCS = Path(__file__).parent
#: The first is not among those that vqgan-tiny was trained on.
PHOTOGRAPHS = ("admiral", "cat", "coffee", "rocket")
COMPARED = ("vqgan-tiny", "toy", "toy-residual")
CAPTIONS = 64
SIDE = 256
GAP = 8


def main() -> None:
    """Write the figures."""
    (DOCS / "pictures").mkdir(exist_ok=True)
    draw_tokens()
    draw_compared()
    draw_captions()


def draw_captions() -> None:
    """Write a sheet of captions and their pictures, each the first that is drawn."""
    generator, prompts = load_generator("toklip-gen-tiny"), scene_prompts(CAPTIONS, split="validation")
    texts = [prompt.text for prompt in prompts]
    pixels = generator.pixels(generator.draw(texts, seeds=range(CAPTIONS)).ids)
    panels = [to_picture(one).resize((PANEL_SIDE, PANEL_SIDE), Image.Resampling.NEAREST) for one in pixels]
    sheet = picture_sheet(texts, panels, columns=8)
    sheet.reduce(3).save(DOCS / "pictures/captions.jpg", quality=66, optimize=True)
    print(match_by_pixels(pixels, [prompt.claims for prompt in prompts]))


def draw_compared() -> None:
    """Write the sheet of photographs through the tokenizers that need no download."""
    with contextlib.chdir(DOCS.parent):  # so that names of pictures are those that a reader types
        comparison = compare_tokenizers(COMPARED, ["docs/examples/photographs"], image_size=SIDE)
    sheet = draw_comparison(comparison)
    sheet.reduce(2).save(DOCS / "pictures/compared.jpg", quality=75, optimize=True)


def draw_tokens() -> None:
    """Write photographs above their codes and their reconstructions."""
    tokenizer = load_tokenizer("vqgan-tiny")
    pixels = [to_pixels(open_picture(DOCS / f"examples/photographs/{name}.jpg"), SIDE) for name in PHOTOGRAPHS]
    ids = [tokenizer.encode(one[None]) for one in pixels]
    colours = code_colours(torch.cat([tokenizer.embed(one) for one in ids]))
    step = SIDE + GAP
    figure = Image.new("RGB", (len(pixels) * step - GAP, 3 * step - GAP), "white")
    for x, (photograph, cells, drawn) in enumerate(zip(pixels, colours, ids, strict=True)):
        grid = to_picture(cells.permute(2, 0, 1)).resize((SIDE, SIDE), Image.Resampling.NEAREST)
        for y, picture in enumerate((to_picture(photograph), grid, to_picture(tokenizer.decode(drawn)[0]))):
            figure.paste(picture, (x * step, y * step))
    figure.save(DOCS / "pictures/tokens.jpg", quality=85, optimize=True)


def code_colours(codes: Tensor) -> Tensor:
    """Return a colour (B, h, w, 3) in [-1, 1] for each code (B, h, w, C)."""
    flat = codes.flatten(0, 2)
    _, _, directions = torch.pca_lowrank(flat, q=3, niter=8)
    parts = (flat - flat.mean(0)) @ directions
    colours: Tensor = (parts / (2 * parts.std(0))).clamp(-1, 1)
    return colours.view(*codes.shape[:3], 3)


if __name__ == "__main__":
    main()
