"""Reads a scene on a plain background from its pixels: where objects are, their colours and shapes, by no network.

    levels -> background, a plane a channel -> what is not it -> connected parts -> colour by hue, shape by the renderer

Exact where the background is plain, which is why captions say so. Measured on scenes themselves, and on what a
tokenizer makes of them: docs/results/generation.md.

Shape letters: S picture side, n pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toklip_core.scenes.drawing import colour_name
from toklip_core.scenes.picture import SHAPES, Background, SceneObject, render

Plane = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]

#: An object lies at least 0.4 from the background in RGB, before the light, which may take half of it.
_CONTRAST = 0.15
#: Of what the smallest object covers: parts below it are specks.
_SPECK = 0.25
_SMALLEST_RADIUS = 0.1
#: Of the middle contrast of a part: thresholds at which it may fall apart.
_SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
#: Shapes are turned by 35 degrees at most.
_TURNS = tuple(math.radians(degrees) for degrees in range(-35, 36, 7))
_BLACK = Background(kind="plain", colours=((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)))
#: The renderer's shapes are compared in a window four radii wide, a little larger and smaller, sharp and blurred, as a
#: tokenizer may give them back.
_WINDOW, _SIZES, _BLURS = 32, (0.8, 0.9, 1.0, 1.1), (0.0, 1.5, 3.0)
#: What is black has no hue, and any colour's name.
_DARK = 1e-3
#: Reweighted least squares: rounds, and the residual beyond which a pixel counts little.
_ROUNDS, _SCALE = 12, 0.03


class Found(NamedTuple):
    """An object that was found: what it looks like, and its centre as shares of the side."""

    colour: str
    shape: str
    x: float
    y: float


def read_scene(levels: NDArray[np.uint8]) -> list[Found]:
    """Return the objects of a picture (S, S, 3), uint8, on a plain background, the largest first.

    >>> from toklip_core.scenes import scene
    >>> drawn = scene(0, objects=1, background="plain")
    >>> [(thing.colour, thing.shape) for thing in read_scene(drawn.pixels)] == [
    ...     (thing.colour, thing.shape) for thing in drawn.objects
    ... ]
    True
    """
    picture = levels.astype(np.float64) / 255
    background = _background(picture)
    apart = np.linalg.norm(picture - background, axis=-1)
    side = len(picture)
    least = _SPECK * math.pi * (_SMALLEST_RADIUS * side) ** 2
    found = list(_separate(apart, apart > _CONTRAST, least))
    found.sort(key=lambda part: -int(part.sum()))
    return [_object(picture, background, apart, part) for part in found]


def _background(picture: Plane) -> Plane:
    """The plane of each channel that most pixels lie on: a colour under a light that falls off along the sides."""
    side = len(picture)
    places = (np.arange(side) + 0.5) / side - 0.5
    x, y = np.meshgrid(places, places)
    terms = np.stack([np.ones_like(x), x, y], axis=-1).reshape(-1, 3)
    values = picture.reshape(-1, 3)
    rim = (np.maximum(np.abs(x), np.abs(y)) > 0.5 - 2.5 / side).reshape(-1)
    # From the rim, most of which is background, to the whole picture.
    planes = _fitted(terms[rim], values[rim], np.ones(int(rim.sum())))
    distances = np.linalg.norm(values - terms @ planes, axis=-1)
    planes = _fitted(terms, values, 1 / (1 + (distances / _SCALE) ** 2))
    return (terms @ planes).reshape(picture.shape)


def _fitted(terms: Plane, values: Plane, weights: Plane) -> Plane:
    """Planes (3, 3) by least squares, reweighted as for a Cauchy distribution: what is far off counts little."""
    planes: Plane = np.zeros((3, values.shape[-1]))
    for _ in range(_ROUNDS):
        weighted = terms * weights[:, None]
        planes = np.linalg.lstsq(weighted.T @ terms, weighted.T @ values, rcond=None)[0]
        distances = np.linalg.norm(values - terms @ planes, axis=-1)
        weights = 1 / (1 + (distances / _SCALE) ** 2)
    return planes


def _separate(apart: Plane, mask: Mask, least: float) -> Iterator[Mask]:
    """Parts of a mask; those that a blurred edge joins are taken apart, where a higher threshold leaves two objects."""
    for part in _parts(mask):
        if part.sum() < least:
            continue
        middle = float(np.median(apart[part]))
        for share in _SHARES:
            cores = [core for core in _parts(part & (apart > share * middle)) if core.sum() >= least]
            if len(cores) > 1:
                yield from cores
                break
        else:
            yield part


def _parts(mask: Mask) -> Iterator[Mask]:
    """Parts of a mask that hang together by the sides of their pixels."""
    left = mask.copy()
    height, width = mask.shape
    for start in zip(*np.nonzero(mask), strict=True):
        if not left[start]:
            continue
        part = np.zeros_like(mask)
        waiting = [start]
        left[start] = False
        while waiting:
            row, column = waiting.pop()
            part[row, column] = True
            for near in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                if 0 <= near[0] < height and 0 <= near[1] < width and left[near]:
                    left[near] = False
                    waiting.append(near)
        yield part


def _object(picture: Plane, background: Plane, apart: Plane, part: Mask) -> Found:
    side = len(picture)
    inner = part & (apart > np.median(apart[part]) * 0.85)  # without its edges, where the background shines through
    light = background[inner].mean(axis=-1) / max(background.mean(), _DARK)
    colours = picture[inner]
    # What the light has driven to white has lost its hue; the picture's darker half has not.
    unclipped = colours.max(axis=-1) < 0.98
    chosen = unclipped if unclipped.sum() >= 8 else np.ones_like(unclipped)
    colour = (colours[chosen] / np.maximum(light[chosen], 0.2)[:, None]).mean(axis=0)
    covered = np.clip(apart / np.median(apart[inner]), 0, 1) * _grown(part)
    rows, columns = np.mgrid[:side, :side]
    total = covered.sum()
    x, y = ((covered * (axis + 0.5)).sum() / total / side for axis in (columns, rows))
    radius = math.sqrt(total / math.pi) / side
    return Found(colour_name(tuple((colour / max(colour.max(), _DARK)).tolist())), _shape(covered, x, y, radius), x, y)


def _grown(part: Mask) -> Mask:
    """A mask and the pixels beside it: edges are partly covered."""
    grown = part.copy()
    grown[1:] |= part[:-1]
    grown[:-1] |= part[1:]
    grown[:, 1:] |= part[:, :-1]
    grown[:, :-1] |= part[:, 1:]
    return grown


def _shape(covered: Plane, x: float, y: float, radius: float) -> str:
    """The shape whose drawing is most like what is covered, by their cosine: faintness is no matter."""
    near = _resampled(covered, x, y, radius).reshape(-1)
    shapes, drawings = _drawings()
    return shapes[int((drawings @ near).argmax())]


def _resampled(covered: Plane, x: float, y: float, radius: float) -> Plane:
    """What is covered around a place, (_WINDOW, _WINDOW), the radius being a quarter of its side."""
    places = ((np.arange(_WINDOW) + 0.5) / _WINDOW - 0.5) * 4 * radius
    side = len(covered)
    rows, columns = ((centre + places) * side - 0.5 for centre in (y, x))
    return _between(_between(covered, rows).T, columns).T


def _between(values: Plane, rows: Plane) -> Plane:
    """Rows of an array at places between them, 0 beyond its ends."""
    padded = np.pad(values, ((1, 1), (0, 0)))
    place = np.clip(rows + 1, 0, len(padded) - 1.001)
    below = place.astype(np.int64)
    share = (place - below)[:, None]
    return padded[below] * (1 - share) + padded[below + 1] * share


@cache
def _drawings() -> tuple[tuple[str, ...], Plane]:
    """The renderer's shapes, turned, a little larger and smaller, sharp and blurred: their names, and unit rows."""
    names: list[str] = []
    rows: list[Plane] = []
    for shape in SHAPES:
        for turn in (0.0,) if shape in ("circle", "ring") else _TURNS:
            for size in _SIZES:
                drawn = _drawn(shape, size / 4, turn)
                for blur in _BLURS:
                    row = _blurred(drawn, blur).reshape(-1)
                    names.append(shape)
                    rows.append(row / np.linalg.norm(row))
    return tuple(names), np.stack(rows)


def _drawn(shape: str, radius: float, turn: float) -> Plane:
    thing = SceneObject(
        shape=shape, colour="red", size="medium", x=0.5, y=0.5, radius=radius, turn=turn, rgb=(1.0, 1.0, 1.0)
    )
    return render([thing], _BLACK, _WINDOW)[..., 0] / 255


def _blurred(drawn: Plane, deviation: float) -> Plane:
    if not deviation:
        return drawn
    places = np.arange(_WINDOW)
    kernel = np.exp(-((places[:, None] - places) ** 2) / (2 * deviation**2))
    kernel /= kernel.sum(axis=1, keepdims=True)
    blurred: Plane = kernel @ drawn @ kernel.T
    return blurred
