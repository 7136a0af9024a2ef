"""Where in a picture a text is: the agreement of each token of TokLIP with it, drawn over the picture.

A token stands for one cell of the grid. It is brought into the joint space as if it were pooled alone, and its
agreement with a text is the cosine there. Token i has seen the codes 0 to i alone, in raster order: what lies below it,
or right of it in its row, it does not know.

Source: the idea of pooling each token alone is MaskCLIP's, https://arxiv.org/abs/2112.01071, section 3.2.

Shape letters: h and w grid, X texts, E joint space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from toklip_core.devices import Compute
from toklip_core.evaluation.classes import refuse_duplicates
from toklip_core.evaluation.matcher import load_matcher, refuse_cut_texts, text_features
from toklip_core.finite import refuse_not_finite, rows_named
from toklip_core.model import TokLIP
from toklip_core.pictures import (
    PANEL_GAP,
    PANEL_SIDE,
    PictureError,
    line_height,
    open_picture,
    picture_sheet,
    resized,
    sheet_width,
    wrapped_lines,
    write_lines,
)

_BAR = 18
_SMALL = 15
_TICKS = 5
_INK, _FAINT = (20, 20, 20), (90, 90, 90)

#: From low to high: dark violet to light yellow, ever lighter, so that it can be read without seeing hues.
_COLOURS = np.array([(24, 12, 84), (96, 20, 130), (176, 42, 118), (232, 92, 72), (250, 164, 52), (252, 238, 130)])
_OPACITY = 0.6

_Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """The agreement of tokens with texts."""

    #: The picture as the model sees it, a square of PANEL_SIDE.
    image: Image.Image
    picture: str
    texts: tuple[str, ...]
    #: (X, h, w), float32: cosines, less what ``relative`` says.
    values: Tensor
    #: Cosine of the whole picture's feature with each text.
    whole: tuple[float, ...]
    #: Whether the mean over the texts was subtracted from each token's cosines.
    relative: bool
    #: Whether tokens know nothing of what comes after them.
    causal: bool
    protocol: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """Return plain data: for each text a grid of numbers, row by row."""
        values = self.values.tolist()
        rows = [
            {"text": text, "tokens": grid, "picture": whole}
            for text, grid, whole in zip(self.texts, values, self.whole, strict=True)
        ]
        return {"picture": self.picture, "relative": self.relative, "texts": rows, "protocol": self.protocol}


def explain_picture(
    name: Path | str,
    picture: Path | str,
    texts: Sequence[str],
    *,
    relative: bool = False,
    compute: Compute = Compute(),
) -> Explanation:
    """Return how each token of a picture agrees with texts: what ``toklip explain`` draws.

    Args:
        name: of a TokLIP, or its folder.
        picture: a file.
        texts: one or more.
        relative: subtract from each token's cosines their mean over the texts, which shows where they differ.
        compute: where, and the largest picture that is read.

    Raises:
        FileNotFoundError: a file of the model is not there.
        LookupError: there is no such model, or it has no text tower.
        ValueError: the picture cannot be read, there is no text or one that is longer than the model reads,
            ``relative`` has a single one, or the model has no semantic tokens.
    """
    texts = refuse_duplicates(texts, "text")
    if relative and len(texts) < 2:
        raise ValueError(f"got {len(texts)} text to compare; give two or more, or leave out --relative")
    try:
        image = open_picture(picture, max_pixels=compute.max_pixels)
    except PictureError as error:
        raise PictureError(f"{picture}: {error}") from error
    model, protocol = load_matcher(name, compute)
    if not isinstance(model, TokLIP):
        raise ValueError(f"{name} is a {type(model).__name__}, which has no semantic tokens; name a TokLIP")
    refuse_cut_texts(model, texts)
    wanted = text_features(model, texts)
    with torch.no_grad(), rows_named([str(picture)]):
        encoded = model.encode_pictures([image])
        each = F.normalize(model.encoder.pool_each(encoded.tokens)[0].float(), dim=-1)
        pooled = F.normalize(encoded.pooled[0].float(), dim=-1)
        refuse_not_finite(each[None], "a token's feature")
    values = (wanted @ each.T).unflatten(1, tuple(encoded.ids.shape[1:])).cpu()  # type: ignore[no-untyped-call]
    if relative:
        values = values - values.mean(0)
    return Explanation(
        image=resized(image, PANEL_SIDE, model.config.resize),
        picture=str(picture),
        texts=tuple(texts),
        values=values,
        whole=tuple((wanted @ pooled).tolist()),
        relative=relative,
        causal=model.encoder.config.causal,
        protocol=protocol,
    )


def draw_explanation(explanation: Explanation) -> Image.Image:
    """Return the picture, and beside it one panel for each text, its tokens' values as colours; below, the legend.

    All panels have one scale, from the least value to the greatest.
    """
    values = explanation.values.numpy()
    span = float(values.min()), float(values.max())
    grey = _faint(explanation.image)
    titles = ["The picture, as the model sees it"]
    whole = zip(explanation.texts, explanation.whole, strict=True)
    titles += [f"“{text}” (picture: {cosine:.3f})" for text, cosine in whole]
    panels = [explanation.image, *(_overlaid(grey, grid, span) for grid in values)]
    return picture_sheet(titles, panels, below=_legend(explanation, span, sheet_width(len(panels))))


def _legend(explanation: Explanation, span: tuple[float, float], width: int) -> Image.Image:
    """The scale with its numbers, and what they are."""
    font = ImageFont.load_default(_SMALL)
    notes = [
        f"{explanation.protocol['model']}. Colour: cosine of each token, pooled alone, with the text"
        + (", less its mean over these texts." if explanation.relative else ".")
        + " In brackets: that of the whole picture.",
    ]
    if explanation.causal:
        notes += ["A token has seen its own code, and those above it and left of it in its row, and no others."]
    words = [line for note in notes for line in wrapped_lines(note, font, width)]
    height = line_height(font)
    legend = Image.new("RGB", (width, _BAR + (1 + len(words)) * height + 2 * PANEL_GAP), "white")
    legend.paste(Image.fromarray(np.tile(_coloured(np.linspace(0, 1, PANEL_SIDE)), (_BAR, 1, 1))), (0, 0))
    pen = ImageDraw.Draw(legend)
    for tick in range(_TICKS):
        share = tick / (_TICKS - 1)
        number = f"{span[0] + share * (span[1] - span[0]):.3f}"
        # The first begins at the scale's begin, the last ends at its end.
        pen.text((share * (PANEL_SIDE - font.getlength(number)), _BAR), number, _INK, font)
    write_lines(pen, (0, _BAR + height + 2 * PANEL_GAP), words, font, _FAINT)
    return legend


def _faint(image: Image.Image) -> Image.Image:
    """A picture in greys that show its shapes and are all near the middle, so as not to be taken for values."""
    levels = [round(80 + level / 2) for level in range(256)]
    return ImageOps.autocontrast(image.convert("L")).point(levels).convert("RGB")


def _overlaid(grey: Image.Image, grid: _Floats, span: tuple[float, float]) -> Image.Image:
    """A grey picture under the colours of a grid (h, w), one block a token."""
    low, high = span
    blocks = Image.fromarray(_coloured((grid - low) / ((high - low) or 1)))
    return Image.blend(grey, blocks.resize(grey.size, Image.Resampling.NEAREST), _OPACITY)


def _coloured(shares: _Floats) -> NDArray[np.uint8]:
    """Shares (...) in [0, 1] as colours (..., 3)."""
    places = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(shares, places, _COLOURS[:, channel]) for channel in range(3)]
    colours: NDArray[np.uint8] = np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
    return colours
