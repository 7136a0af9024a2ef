"""Maps of the match between the tokens of a picture and texts, drawn over the picture.

A token stands for one cell of the grid. It is pooled alone, which places it in the joint space, and its match with a
text is the cosine there. Token i depends on codes 0 to i only, in raster order, so it does not know what is below it,
or right of it in its row.

Source: the idea of pooling each token alone is MaskCLIP's, https://arxiv.org/abs/2112.01071, section 3.2.

Shape letters: h and w grid of the code map, X texts, E joint space, Q levels.
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

from toklip_core.config import Compute
from toklip_core.evaluation.classes import refuse_duplicates
from toklip_core.evaluation.matcher import (
    Matcher,
    load_matcher,
    refuse_cut_texts,
    text_features,
    warn_of_other_pictures,
)
from toklip_core.files import named_error
from toklip_core.model import OF_SCENES, TokLIP
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
from toklip_core.weights import refuse_not_finite, rows_named

_BAR = 18
_SMALL = 15
_TICKS = 5
_INK, _FAINT = (20, 20, 20), (90, 90, 90)

#: Colours from low to high, from dark violet to light yellow; they can be told apart by brightness alone.
_COLOURS = np.array([(24, 12, 84), (96, 20, 130), (176, 42, 118), (232, 92, 72), (250, 164, 52), (252, 238, 130)])
_OPACITY = 0.6

_Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """The match of tokens with texts."""

    #: The picture as the model sees it, a square of PANEL_SIDE.
    image: Image.Image
    picture: str
    texts: tuple[str, ...]
    #: (X, h, w), float32: cosines, minus their mean over the texts if ``relative``.
    values: Tensor
    #: (h, w, Q), int64, ids of the VQ tokenizer; a tokenizer whose ids form a pyramid has a grid of its own.
    ids: Tensor
    #: Cosine of the whole picture with each text.
    whole: tuple[float, ...]
    #: Whether the mean over the texts was subtracted from each token's cosines.
    relative: bool
    #: Whether the encoder is causal.
    causal: bool
    protocol: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """Return the map as JSON data: for each text a grid of numbers, row by row."""
        values = self.values.tolist()
        rows = [
            {"text": text, "tokens": grid, "picture": whole}
            for text, grid, whole in zip(self.texts, values, self.whole, strict=True)
        ]
        return {
            "picture": self.picture,
            "relative": self.relative,
            "ids": self.ids.tolist(),
            "texts": rows,
            "protocol": self.protocol,
        }


def explain_picture(
    name: Path | str,
    picture: Path | str,
    texts: Sequence[str],
    *,
    relative: bool = False,
    compute: Compute = Compute(),
) -> Explanation:
    """Return the match of each token of a picture with texts, which ``toklip explain`` draws.

    Args:
        name: name or folder of a TokLIP.
        picture: file of the picture, or as text one scene, such as ``scenes:held-out?count=1&seed=7``.
        texts: at least one text.
        relative: whether to subtract from each token's cosines their mean over the texts, to show differences.
        compute: device, and maximum pixels of the picture.

    Raises:
        FileNotFoundError: a file of the model is not there.
        LookupError: there is no such model, or it has no text tower.
        ValueError: the picture cannot be read, there is no text or one that is longer than the model reads,
            ``relative`` has a single one, or the model has no semantic tokens.
    """
    _refuse_texts(texts, relative)
    try:
        image = open_picture(picture, max_pixels=compute.max_pixels)
    except PictureError as error:
        raise PictureError(f"{picture}: {error}") from error
    except (OSError, MemoryError) as error:
        raise named_error(error, str(picture)) from error
    model, protocol = load_matcher(name, compute)
    if name in OF_SCENES:
        warn_of_other_pictures(str(name), [(picture, image.size)], side=model.config.image_size)
    return explain_image(model, image, texts, picture=str(picture), relative=relative, protocol=protocol)


def explain_image(
    model: Matcher,
    image: Image.Image,
    texts: Sequence[str],
    *,
    picture: str,
    relative: bool = False,
    protocol: dict[str, str],
) -> Explanation:
    """Return the match of each token of an open picture with texts, by a loaded model; see :func:`explain_picture`.

    Args:
        model: model from :func:`toklip_core.evaluation.load_matcher`.
        image: RGB picture.
        texts: at least one text.
        picture: name of the picture.
        relative: whether to subtract from each token's cosines their mean over the texts.
        protocol: what ``load_matcher`` says of the model.

    Raises:
        LookupError: the model has no text tower.
        ValueError: there is no text or one that is longer than the model reads, ``relative`` has a single one, or the
            model has no semantic tokens.
    """
    texts = _refuse_texts(texts, relative)
    if not isinstance(model, TokLIP):
        raise ValueError(
            f"{protocol['model']} is a {type(model).__name__}, which has no semantic tokens; name a TokLIP"
        )
    refuse_cut_texts(model, texts)
    wanted = text_features(model, texts)
    with torch.no_grad(), rows_named([picture]):
        encoded = model.encode_pictures([image])
        each = F.normalize(model.encoder.pool_each(encoded.tokens)[0].float(), dim=-1)
        pooled = F.normalize(encoded.pooled[0].float(), dim=-1)
        refuse_not_finite(each[None], "a token's feature")
    values = (wanted @ each.T).unflatten(1, tuple(encoded.codes.shape[1:3])).cpu()  # type: ignore[no-untyped-call]
    if relative:
        values = values - values.mean(0)
    return Explanation(
        image=resized(image, PANEL_SIDE, model.config.resize),
        picture=picture,
        texts=tuple(texts),
        values=values,
        ids=encoded.ids[0].cpu(),
        whole=tuple((wanted @ pooled).tolist()),
        relative=relative,
        causal=model.encoder.config.causal,
        protocol=protocol,
    )


def draw_explanation(explanation: Explanation) -> Image.Image:
    """Return a sheet with the picture, a panel per text with the tokens' values as colours, and a legend below.

    All panels share a scale from the smallest to the largest value.
    """
    values = explanation.values.numpy()
    span = float(values.min()), float(values.max())
    grey = _faint(explanation.image)
    titles = ["The picture, as the model sees it"]
    whole = zip(explanation.texts, explanation.whole, strict=True)
    titles += [f"“{text}” (picture: {cosine:.3f})" for text, cosine in whole]
    panels = [explanation.image, *(_overlaid(grey, grid, span) for grid in values)]
    return picture_sheet(titles, panels, below=_legend(explanation, span, sheet_width(len(panels))))


def draw_map(explanation: Explanation, text: str) -> Image.Image:
    """Return the panel of one text, of PANEL_SIDE: the picture in grey under the colours of the tokens' values.

    The colours go from the smallest to the largest value of this text.
    """
    grid = explanation.values[explanation.texts.index(text)].numpy()
    return _overlaid(_faint(explanation.image), grid, (float(grid.min()), float(grid.max())))


def _refuse_texts(texts: Sequence[str], relative: bool) -> Sequence[str]:
    """Return the texts; ValueError if there is none, an empty one, two alike, or a single one to compare."""
    texts = refuse_duplicates(texts, "text")
    if relative and len(texts) < 2:
        raise ValueError(f"got {len(texts)} text to compare; give two or more, or leave out --relative")
    return texts


def _legend(explanation: Explanation, span: tuple[float, float], width: int) -> Image.Image:
    """Return the colour scale with numbers and a description."""
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
        # The first number is aligned left, the last one right.
        pen.text((share * (PANEL_SIDE - font.getlength(number)), _BAR), number, _INK, font)
    write_lines(pen, (0, _BAR + height + 2 * PANEL_GAP), words, font, _FAINT)
    return legend


def _faint(image: Image.Image) -> Image.Image:
    """Return a picture in medium greys, which show its shapes but do not look like values."""
    levels = [round(80 + level / 2) for level in range(256)]
    return ImageOps.autocontrast(image.convert("L")).point(levels).convert("RGB")


def _overlaid(grey: Image.Image, grid: _Floats, span: tuple[float, float]) -> Image.Image:
    """Return a grey picture under the colours of a grid (h, w), with one block per token."""
    low, high = span
    blocks = Image.fromarray(_coloured((grid - low) / ((high - low) or 1)))
    return Image.blend(grey, blocks.resize(grey.size, Image.Resampling.NEAREST), _OPACITY)


def _coloured(shares: _Floats) -> NDArray[np.uint8]:
    """Return colours (..., 3) for shares (...) in [0, 1]."""
    places = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(shares, places, _COLOURS[:, channel]) for channel in range(3)]
    colours: NDArray[np.uint8] = np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
    return colours
