"""Random objects and backgrounds of scenes."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from toklip_core.scenes.draws import Draws
from toklip_core.scenes.picture import (
    BACKGROUNDS,
    CLOUD_KNOTS,
    COLOURS,
    HELD_OUT,
    RELATION_MARGIN,
    SHAPES,
    SIZES,
    Background,
    Colour,
    SceneObject,
    reach,
)


class _Palette(NamedTuple):
    """A hue in degrees, how far it may vary to either side, and the ranges of saturation and value."""

    hue: float
    jitter: float
    saturation: tuple[float, float]
    value: tuple[float, float]


_PALETTES = {
    "red": _Palette(358, 7, (0.75, 1.0), (0.65, 0.95)),
    "orange": _Palette(27, 6, (0.75, 1.0), (0.85, 1.0)),
    "yellow": _Palette(54, 6, (0.65, 1.0), (0.85, 1.0)),
    "green": _Palette(118, 22, (0.55, 1.0), (0.45, 0.85)),
    "cyan": _Palette(180, 9, (0.5, 1.0), (0.7, 1.0)),
    "blue": _Palette(226, 12, (0.65, 1.0), (0.6, 1.0)),
    "purple": _Palette(274, 10, (0.55, 0.95), (0.5, 0.85)),
    "pink": _Palette(328, 9, (0.35, 0.65), (0.9, 1.0)),
}

#: Radii as shares of the side. At 64 px the smallest shape has the area of a disc of 13 px diameter, the largest 29 px.
_RADII = {"small": (0.1, 0.115), "medium": (0.14, 0.16), "large": (0.2, 0.225)}

#: Largest turn of a shape in radians; a square must not become a diamond.
_TURN = math.radians(35)

#: Smallest distance in RGB between an object and both colours of the background.
_CONTRAST = 0.4

_ALL_PAIRS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
_SEEN_PAIRS = tuple(pair for pair in _ALL_PAIRS if pair not in HELD_OUT)

Pair = tuple[str, str]


def allowed_pairs(split: str) -> tuple[Pair, ...]:
    """Return the (colour, shape) combinations that may occur in scenes, captions and questions of a split."""
    return _ALL_PAIRS if split == "held-out" else _SEEN_PAIRS


def draw_objects(draws: Draws, split: str, count: int) -> tuple[SceneObject, ...]:
    """Return random objects that lie inside the picture, do not overlap, and differ in colour or shape."""
    pairs = _draw_pairs(draws, split, count)
    while True:
        # Three large shapes do not fit, so each attempt draws new sizes as well as places.
        things = [_draw_object(draws, pair, count) for pair in pairs]
        for _ in range(12):
            placed = [_place(draws, thing) for thing in things]
            if _is_clear(placed):
                return tuple(placed)


def _draw_pairs(draws: Draws, split: str, count: int) -> list[Pair]:
    allowed = allowed_pairs(split)
    pairs: list[Pair] = [draws.pick(HELD_OUT if split == "held-out" else allowed)]
    while len(pairs) < count:
        choices: Sequence[Pair] = allowed
        # Questions about colours and numbers need shapes that share a colour or a shape.
        if draws.chance(0.45):
            axis = draws.below(2)
            choices = [pair for pair in allowed if pair[axis] == pairs[0][axis]]
        pair = draws.pick(choices)
        if pair not in pairs:
            pairs.insert(draws.below(len(pairs) + 1), pair)
    return pairs


def _draw_object(draws: Draws, pair: Pair, count: int) -> SceneObject:
    colour, shape = pair
    size = SIZES[draws.below(3)] if count < 3 else draws.pick(("small", "small", "medium", "medium", "large"))
    return SceneObject(
        shape=shape,
        colour=colour,
        size=size,
        x=0.5,
        y=0.5,
        radius=draws.between(*_RADII[size]),
        turn=draws.between(-_TURN, _TURN),
        colour_values=_draw_colour(draws, colour),
        shade=draws.between(-0.12, 0.12),
    )


def _draw_colour(draws: Draws, name: str) -> Colour:
    palette = _PALETTES[name]
    hue = palette.hue + draws.between(-palette.jitter, palette.jitter)
    return colorsys.hsv_to_rgb(hue / 360 % 1, draws.between(*palette.saturation), draws.between(*palette.value))


def _place(draws: Draws, thing: SceneObject) -> SceneObject:
    margin = reach(thing)
    x, y = draws.between(margin, 1 - margin), draws.between(margin, 1 - margin)
    return replace(thing, x=x, y=y)


def _is_clear(things: Sequence[SceneObject]) -> bool:
    """Return whether no two objects overlap and a relation holds for each pair."""
    for i, first in enumerate(things):
        for second in things[:i]:
            dx, dy = first.x - second.x, first.y - second.y
            # Tips rarely touch, but rings and circles would. Measured: 1 scene of 500 has shapes that touch.
            apart = max(0.9 * (reach(first) + reach(second)), 1.17 * (first.radius + second.radius)) + 0.02
            if dx * dx + dy * dy < apart * apart or max(abs(dx), abs(dy)) < RELATION_MARGIN:
                return False
    return True


def draw_background(draws: Draws, objects: Sequence[SceneObject], kind: str | None = None) -> Background:
    """Return a random background from which every object stands out, of the given kind if there is one."""
    drawn = draws.pick(BACKGROUNDS)
    kind = kind or drawn
    while True:
        colours = _draw_two_colours(draws)
        if all(math.dist(thing.colour_values, colour) >= _CONTRAST for thing in objects for colour in colours):
            break
    return Background(
        kind=kind,
        colours=colours,
        turn=draws.between(0, math.pi),
        period=draws.between(0.3, 0.55),
        phase=(draws.share(), draws.share()),
        knots=tuple(draws.share() for _ in range(CLOUD_KNOTS**2)) if kind == "cloudy" else (),
        light=(draws.between(0.85, 1.05), draws.between(-0.3, 0.3), draws.between(-0.3, 0.3)),
    )


def colour_name(rgb: Colour) -> str:
    """Return the name of the colour whose hue is nearest to that of ``rgb``; brightness does not count."""
    hue = colorsys.rgb_to_hsv(*rgb)[0] * 360

    def apart(name: str) -> float:
        palette = _PALETTES[name]
        return abs((hue - palette.hue + 180) % 360 - 180) - palette.jitter

    return min(COLOURS, key=apart)


def _draw_two_colours(draws: Draws) -> tuple[Colour, Colour]:
    """Return two random colours of any hue, close enough to each other for a small tokenizer to keep."""
    hue, saturation, value = draws.share(), draws.between(0, 0.75), draws.between(0.25, 0.95)
    first = colorsys.hsv_to_rgb(hue, saturation, value)
    value += draws.pick((-1, 1)) * draws.between(0.1, 0.22)
    saturation += draws.between(-0.2, 0.2)
    second = colorsys.hsv_to_rgb(
        (hue + draws.between(-0.12, 0.12)) % 1, min(max(saturation, 0.0), 1.0), min(max(value, 0.15), 1.0)
    )
    return first, second
