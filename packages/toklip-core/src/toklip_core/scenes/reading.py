"""Detects the objects of a scene on a plain background, with their colours and shapes, without a network.

    rgb -> background plane -> foreground -> connected components -> colour by hue, shape by comparing with drawings

It is exact only if the background is plain. docs/results/generation.md has its accuracy on scenes and on what a
tokenizer makes of them.

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

#: Distance from the background in RGB above which a pixel is foreground: 0.4 as drawn, of which light may take half.
_CONTRAST = 0.15
#: Share of the smallest object's area below which a component is a speck.
_SPECK = 0.25
_SMALLEST_RADIUS = 0.1
#: Thresholds, as shares of the median contrast of a component, at which it may separate into several.
_SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
#: Turns to compare with; shapes are turned by at most 35 degrees.
_TURNS = tuple(math.radians(degrees) for degrees in range(-35, 36, 7))
_BLACK = Background(kind="plain", colours=((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)))
#: Drawings to compare with: the side of their window, which is four radii wide, and their sizes and blurs, as a
#: tokenizer may change both.
_WINDOW, _SIZES, _BLURS = 32, (0.8, 0.9, 1.0, 1.1), (0.0, 1.5, 3.0)
#: Brightness that counts as black, which has no hue.
_DARK = 1e-3
#: Rounds of reweighted least squares, and the residual beyond which a pixel counts little.
_ROUNDS, _SCALE = 12, 0.03


class Detection(NamedTuple):
    """A detected object: its colour and shape, and its centre in shares of the picture's side."""

    colour: str
    shape: str
    x: float
    y: float


def read_scene(rgb: NDArray[np.uint8]) -> list[Detection]:
    """Return the objects of a picture (S, S, 3), uint8, on a plain background, the largest first.

    >>> from toklip_core.scenes import scene
    >>> drawn = scene(0, objects=1, background="plain")
    >>> [(thing.colour, thing.shape) for thing in read_scene(drawn.rgb)] == [
    ...     (thing.colour, thing.shape) for thing in drawn.objects
    ... ]
    True
    """
    picture = rgb.astype(np.float64) / 255
    background = _background(picture)
    apart = np.linalg.norm(picture - background, axis=-1)
    side = len(picture)
    least = _SPECK * math.pi * (_SMALLEST_RADIUS * side) ** 2
    found = list(_separate(apart, apart > _CONTRAST, least))
    found.sort(key=lambda component: -int(component.sum()))
    return [_object(picture, background, apart, component) for component in found]


def _background(picture: Plane) -> Plane:
    """Return the plane of each channel that fits most pixels: a colour under a light that falls off along a side."""
    side = len(picture)
    places = (np.arange(side) + 0.5) / side - 0.5
    x, y = np.meshgrid(places, places)
    terms = np.stack([np.ones_like(x), x, y], axis=-1).reshape(-1, 3)
    values = picture.reshape(-1, 3)
    rim = (np.maximum(np.abs(x), np.abs(y)) > 0.5 - 2.5 / side).reshape(-1)
    # Fitted to the rim first, most of which is background, then to the whole picture.
    planes = _fitted(terms[rim], values[rim], np.ones(int(rim.sum())))
    distances = np.linalg.norm(values - terms @ planes, axis=-1)
    planes = _fitted(terms, values, 1 / (1 + (distances / _SCALE) ** 2))
    return (terms @ planes).reshape(picture.shape)


def _fitted(terms: Plane, values: Plane, weights: Plane) -> Plane:
    """Return planes (3, 3) fitted by least squares; Cauchy weights make outliers count little."""
    planes: Plane = np.zeros((3, values.shape[-1]))
    for _ in range(_ROUNDS):
        weighted = terms * weights[:, None]
        planes = np.linalg.lstsq(weighted.T @ terms, weighted.T @ values, rcond=None)[0]
        distances = np.linalg.norm(values - terms @ planes, axis=-1)
        weights = 1 / (1 + (distances / _SCALE) ** 2)
    return planes


def _separate(apart: Plane, mask: Mask, least: float) -> Iterator[Mask]:
    """Yield the components of a mask; one that a higher threshold separates into several objects is split."""
    for component in _components(mask):
        if component.sum() < least:
            continue
        middle = float(np.median(apart[component]))
        for share in _SHARES:
            cores = [core for core in _components(component & (apart > share * middle)) if core.sum() >= least]
            if len(cores) > 1:
                yield from cores
                break
        else:
            yield component


def _components(mask: Mask) -> Iterator[Mask]:
    """Yield the connected components of a mask; pixels are connected along their sides."""
    left = mask.copy()
    height, width = mask.shape
    for start in zip(*np.nonzero(mask), strict=True):
        if not left[start]:
            continue
        component = np.zeros_like(mask)
        waiting = [start]
        left[start] = False
        while waiting:
            row, column = waiting.pop()
            component[row, column] = True
            for near in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                if 0 <= near[0] < height and 0 <= near[1] < width and left[near]:
                    left[near] = False
                    waiting.append(near)
        yield component


def _object(picture: Plane, background: Plane, apart: Plane, component: Mask) -> Detection:
    side = len(picture)
    # Without the edges, which are mixed with background.
    inner = component & (apart > np.median(apart[component]) * 0.85)
    light = background[inner].mean(axis=-1) / max(background.mean(), _DARK)
    colours = picture[inner]
    # Pixels that light has saturated have lost their hue, so darker ones are used if there are enough.
    unclipped = colours.max(axis=-1) < 0.98
    chosen = unclipped if unclipped.sum() >= 8 else np.ones_like(unclipped)
    colour = (colours[chosen] / np.maximum(light[chosen], 0.2)[:, None]).mean(axis=0)
    covered = np.clip(apart / np.median(apart[inner]), 0, 1) * _grown(component)
    rows, columns = np.mgrid[:side, :side]
    total = covered.sum()
    x, y = ((covered * (axis + 0.5)).sum() / total / side for axis in (columns, rows))
    radius = math.sqrt(total / math.pi) / side
    name = colour_name(tuple((colour / max(colour.max(), _DARK)).tolist()))
    return Detection(name, _shape(covered, x, y, radius), x, y)


def _grown(component: Mask) -> Mask:
    """Return a mask with the pixels beside it, because an object covers its edge pixels in part."""
    grown = component.copy()
    grown[1:] |= component[:-1]
    grown[:-1] |= component[1:]
    grown[:, 1:] |= component[:, :-1]
    grown[:, :-1] |= component[:, 1:]
    return grown


def _shape(covered: Plane, x: float, y: float, radius: float) -> str:
    """Return the shape whose drawing has the largest cosine with the covered area, whatever its contrast."""
    near = _resampled(covered, x, y, radius).reshape(-1)
    shapes, drawings = _drawings()
    return shapes[int((drawings @ near).argmax())]


def _resampled(covered: Plane, x: float, y: float, radius: float) -> Plane:
    """Return the covered area around a centre as (_WINDOW, _WINDOW); a radius is a quarter of its side."""
    places = ((np.arange(_WINDOW) + 0.5) / _WINDOW - 0.5) * 4 * radius
    side = len(covered)
    rows, columns = ((centre + places) * side - 0.5 for centre in (y, x))
    return _between(_between(covered, rows).T, columns).T


def _between(values: Plane, rows: Plane) -> Plane:
    """Return rows of an array at fractional positions, interpolated, and 0 beyond its ends."""
    padded = np.pad(values, ((1, 1), (0, 0)))
    place = np.clip(rows + 1, 0, len(padded) - 1.001)
    below = place.astype(np.int64)
    share = (place - below)[:, None]
    return padded[below] * (1 - share) + padded[below + 1] * share


@cache
def _drawings() -> tuple[tuple[str, ...], Plane]:
    """Return the names of shapes and their drawings as unit rows: turned, at several sizes, sharp and blurred."""
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
        shape=shape, colour="red", size="medium", x=0.5, y=0.5, radius=radius, turn=turn, colour_values=(1.0, 1.0, 1.0)
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
