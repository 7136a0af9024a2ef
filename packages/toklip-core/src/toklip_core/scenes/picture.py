"""Objects and backgrounds of scenes, and their renderer.

Pictures are computed only by additions, products, quotients, square roots, minima and maxima of float32 arrays, which
IEEE 754 rounds in exactly one way; there are no sines and no matrix products. So the bytes are the same everywhere.

Coordinates are shares of the picture's side, x to the right and y downwards. Shapes are described around their own
centre, in units of their radius. All have the area of the unit circle, so that the area does not reveal the shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Array of float32. The type is wider because numpy's stubs, unlike numpy, widen it to float64 beside a Python float.
Plane = NDArray[np.floating[Any]]
Colour = tuple[float, float, float]

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "crescent")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SIZES = ("small", "medium", "large")
BACKGROUNDS = ("plain", "gradient", "striped", "checkered", "cloudy")
RELATIONS = ("above", "below", "left of", "right of")

#: Combinations that only the split "held-out" shows: every colour and every shape once.
HELD_OUT = tuple((colour, SHAPES[(3 * i + 1) % len(SHAPES)]) for i, colour in enumerate(COLOURS))

#: Smallest distance between two centres at which one counts as above, below, left or right of the other.
RELATION_MARGIN = 0.12

#: Number of knots of a cloudy background along each side.
CLOUD_KNOTS = 5

#: The smallest side of a picture, in pixels.
SMALLEST = 8


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One coloured shape.

    Attributes:
        shape: one of SHAPES.
        colour: name of the colour, one of COLOURS; ``colour_values`` has its values.
        size: word for the size, one of SIZES; ``radius`` has its value.
        x, y: centre, in (0, 1).
        radius: radius of the circle with the same area.
        turn: clockwise turn in radians.
        colour_values: red, green, blue in [0, 1], before the light.
        shade: gain of brightness per radius along the shape's own vertical axis.
    """

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    turn: float = 0.0
    colour_values: Colour
    shade: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Background:
    """The background behind the shapes, and the light on the whole picture.

    Attributes:
        kind: one of BACKGROUNDS.
        colours: the two colours of the pattern; a plain background shows the first.
        turn: direction of stripes, squares and gradients, in radians.
        period: period of stripes and squares, as a share of the side.
        phase: start of the pattern along both of its axes, in periods.
        knots: CLOUD_KNOTS ** 2 shares of the second colour in [0, 1], row by row; only for a cloudy background.
        light: brightness in the middle, and its gains per side to the right and downwards.
    """

    kind: str
    colours: tuple[Colour, Colour]
    turn: float = 0.0
    period: float = 0.4
    phase: tuple[float, float] = (0.0, 0.0)
    knots: tuple[float, ...] = ()
    light: tuple[float, float, float] = (1.0, 0.0, 0.0)


def distance(first: SceneObject, relation: str, second: SceneObject) -> float:
    """Return how far ``first`` is above, below, left of or right of ``second``, as a share of the side.

    Raises:
        LookupError: the relation is not one of RELATIONS.
    """
    distances = {
        "above": second.y - first.y,
        "below": first.y - second.y,
        "left of": second.x - first.x,
        "right of": first.x - second.x,
    }
    if relation not in distances:
        raise LookupError(f"got the relation {relation!r}, but there are {', '.join(RELATIONS)}")
    return distances[relation]


def holds(first: SceneObject, relation: str, second: SceneObject) -> bool:
    """Return whether ``first`` is above, below, left of or right of ``second`` by at least RELATION_MARGIN.

    Raises:
        LookupError: the relation is not one of RELATIONS.
    """
    return distance(first, relation, second) >= RELATION_MARGIN


def refuse_small(size: int) -> None:
    """Raise ValueError for a picture in which shapes would be smaller than a pixel."""
    if size < SMALLEST:
        raise ValueError(f"got a picture of {size} px, but a scene needs {SMALLEST} px at least")


def render(objects: Sequence[SceneObject], background: Background, size: int = 64) -> NDArray[np.uint8]:
    """Return the picture (size, size, 3), uint8, of a scene, with antialiased edges; later objects lie on top.

    Another size gives the same picture, larger or smaller.

    Raises:
        ValueError: the size is below SMALLEST.
        LookupError: a shape or a kind of background is unknown.
    """
    refuse_small(size)
    canvas = _background(background, size)
    for thing in objects:
        _paint(canvas, thing, size)
    middle, right, down = background.light
    x = _centres(size) - 0.5
    canvas *= (x * down + middle)[:, None] + x * right
    canvas *= 255
    canvas += 0.5
    np.clip(canvas, 0, 255, out=canvas)
    pixels = np.empty((size, size, 3), np.uint8)
    pixels[...] = canvas.transpose(1, 2, 0)
    return pixels


@cache
def _centres(size: int) -> Plane:
    """Return the positions (size,) of pixel centres along a side."""
    return (np.arange(size, dtype=np.float32) + 0.5) / size


def _rgb(colour: Colour) -> Plane:
    return np.array(colour, np.float32)[:, None, None]


def _background(background: Background, size: int) -> Plane:
    """Return the canvas (3, size, size), in [0, 1], before the light."""
    first, second = (_rgb(colour) for colour in background.colours)
    pattern = _PATTERNS.get(background.kind)
    if pattern is None:
        raise LookupError(f"got the background {background.kind!r}, but there are {', '.join(BACKGROUNDS)}")
    return first + pattern(background, size) * (second - first)


def _axes(background: Background, size: int) -> tuple[Plane, Plane]:
    """Return coordinates along and across the direction of a pattern, measured from the middle of the picture."""
    x = _centres(size) - 0.5
    cos, sin = math.cos(background.turn), math.sin(background.turn)
    return x * cos + (x * sin)[:, None], (x * cos)[:, None] - x * sin


def _plain(background: Background, size: int) -> Plane:
    return np.zeros((size, size), np.float32)


def _gradient(background: Background, size: int) -> Plane:
    along, _ = _axes(background, size)
    return _smooth(along / 1.2 + 0.5)


def _stripes(background: Background, size: int) -> Plane:
    along, _ = _axes(background, size)
    return _wave(along / background.period + background.phase[0])


def _checks(background: Background, size: int) -> Plane:
    along, across = _axes(background, size)
    a = _wave(along / background.period + background.phase[0])
    b = _wave(across / background.period + background.phase[1])
    return a + b - 2 * a * b


def _clouds(background: Background, size: int) -> Plane:
    """Return value noise: knots, interpolated with a smooth step."""
    knots = np.array(background.knots, np.float32).reshape(CLOUD_KNOTS, CLOUD_KNOTS)
    place = _centres(size) * (CLOUD_KNOTS - 1)
    below = place.astype(np.int64)
    step = _smooth(place - below)
    rows = knots[below] + step[:, None] * (knots[below + 1] - knots[below])
    left = rows[:, below]
    return left + step * (rows[:, below + 1] - left)


_PATTERNS: dict[str, Callable[[Background, int], Plane]] = {
    "plain": _plain,
    "gradient": _gradient,
    "striped": _stripes,
    "checkered": _checks,
    "cloudy": _clouds,
}


def _wave(place: Plane) -> Plane:
    """Return a wave that rises from 0 to 1 and falls back once per unit, with soft edges."""
    return _smooth(np.abs(2 * (place - np.floor(place)) - 1) * 2 - 0.5)


def _smooth(share: Plane) -> Plane:
    share = np.clip(share, 0, 1)
    return share * share * (3 - 2 * share)


def _paint(canvas: Plane, thing: SceneObject, size: int) -> None:
    """Draw a shape on the canvas (3, size, size), in place."""
    outline, reach = _outline(thing.shape)
    extent = reach * thing.radius + 1 / size
    rows, columns = _window(thing.y, extent, size), _window(thing.x, extent, size)
    x = (_centres(size)[columns] - thing.x) / thing.radius
    y = (_centres(size)[rows] - thing.y) / thing.radius
    cos, sin = math.cos(thing.turn), math.sin(thing.turn)
    u = x * cos + (y * sin)[:, None]
    v = (y * cos)[:, None] - x * sin
    covered = np.clip(0.5 - outline(u, v) * (thing.radius * size), 0, 1)
    window = canvas[:, rows, columns]
    window += covered * (_rgb(thing.colour_values) * (1 - thing.shade * v) - window)


def _window(centre: float, extent: float, size: int) -> slice:
    return slice(max(0, math.floor((centre - extent) * size)), max(0, math.ceil((centre + extent) * size)))


def _outline(shape: str) -> tuple[Callable[[Plane, Plane], Plane], float]:
    """Return the signed distance function of a shape, negative inside, and its largest distance from the centre."""
    if shape not in _OUTLINES:
        raise LookupError(f"got the shape {shape!r}, but there are {', '.join(SHAPES)}")
    return _OUTLINES[shape]


def reach(thing: SceneObject) -> float:
    """Return the distance from the centre of an object to its farthest point, as a share of the side."""
    return _outline(thing.shape)[1] * thing.radius


def _circle(u: Plane, v: Plane) -> Plane:
    return np.sqrt(u * u + v * v) - 1


_SQUARE_HALF = math.sqrt(math.pi) / 2


def _square(u: Plane, v: Plane) -> Plane:
    return np.maximum(np.abs(u), np.abs(v)) - _SQUARE_HALF


#: Radius of the inscribed circle of an equilateral triangle of area pi.
_TRIANGLE_INNER = math.sqrt(math.pi / (3 * math.sqrt(3)))


def _triangle(u: Plane, v: Plane) -> Plane:
    side = np.abs(u) * (math.sqrt(3) / 2) - v / 2
    return np.maximum(side, v) - _TRIANGLE_INNER


#: Distance of the five lines of a pentagram from its centre; its area is 1.1226 times the square of its outer radius.
_STAR_OUTER = math.sqrt(math.pi / 1.12257)
_STAR_INNER = _STAR_OUTER * math.cos(math.radians(72))
_STAR_NORMALS = tuple((math.sin(math.radians(72 * k)), math.cos(math.radians(72 * k))) for k in range(5))


def _star(u: Plane, v: Plane) -> Plane:
    """Return the second largest distance from the five lines; a point of a pentagram lies outside at most one."""
    largest = second = np.full_like(u, -np.inf)
    for right, down in _STAR_NORMALS:
        side = u * right + v * down
        second = np.maximum(second, np.minimum(largest, side))
        largest = np.maximum(largest, side)
    return second - _STAR_INNER


#: Half length and half width of the two bars of a cross, in proportion 1 to 0.36.
_CROSS_LONG = math.sqrt(math.pi / (8 * 0.36 - 4 * 0.36**2))
_CROSS_WIDE = 0.36 * _CROSS_LONG


def _cross(u: Plane, v: Plane) -> Plane:
    a, b = np.abs(u), np.abs(v)
    return np.maximum(np.maximum(a, b) - _CROSS_LONG, np.minimum(a, b) - _CROSS_WIDE)


#: Outer radius of a ring whose hole is half as wide.
_RING_OUTER = math.sqrt(1 / 0.75)


def _ring(u: Plane, v: Plane) -> Plane:
    return np.abs(np.sqrt(u * u + v * v) - 0.75 * _RING_OUTER) - 0.25 * _RING_OUTER


#: A heart is a square on its tip with half a circle on each of its upper sides: half of the square's side.
_HEART_HALF = math.sqrt(math.pi / (1 + math.pi / 4)) / 2
#: Shift of a heart that moves its centroid to the origin.
_HEART_LOWERED = 0.294


def _heart(u: Plane, v: Plane) -> Plane:
    v = v - _HEART_LOWERED
    a, b = (np.abs(u) + v) * math.sqrt(0.5), (np.abs(u) - v) * math.sqrt(0.5)
    square = np.maximum(np.abs(a), np.abs(b)) - _HEART_HALF
    lobe = np.sqrt(a * a + (b - _HEART_HALF) * (b - _HEART_HALF)) - _HEART_HALF
    heart: Plane = np.minimum(square, lobe)
    return heart


#: A crescent is a disc without another: their radii, their distance, and the shift of the centroid to the origin.
_CRESCENT_DISC, _CRESCENT_CUT, _CRESCENT_APART, _CRESCENT_SHIFT = 1.404, 1.134, 0.778, 0.528


def _crescent(u: Plane, v: Plane) -> Plane:
    u = u - _CRESCENT_SHIFT
    disc = np.sqrt(u * u + v * v) - _CRESCENT_DISC
    from_cut = u - _CRESCENT_APART
    cut = np.sqrt(from_cut * from_cut + v * v) - _CRESCENT_CUT
    crescent: Plane = np.maximum(disc, -cut)
    return crescent


_OUTLINES: dict[str, tuple[Callable[[Plane, Plane], Plane], float]] = {
    "circle": (_circle, 1.0),
    "square": (_square, _SQUARE_HALF * math.sqrt(2)),
    "triangle": (_triangle, 2 * _TRIANGLE_INNER),
    "star": (_star, _STAR_OUTER),
    "cross": (_cross, math.hypot(_CROSS_LONG, _CROSS_WIDE)),
    "ring": (_ring, _RING_OUTER),
    "heart": (_heart, 1.235),
    "crescent": (_crescent, 1.77),
}
