"""Scenes: procedural captioned pictures, the data of the tiny models, the tests and the tutorials.

A scene shows one to three coloured shapes on a background, and has captions, class labels, and questions with answers.
Everything depends on (split, seed, index) alone, so there are no files and no downloads. The splits:

    train        combinations of colour and shape outside HELD_OUT
    validation   the same combinations in other scenes
    held-out     every scene shows at least one combination of HELD_OUT

    picture.py   objects, backgrounds, and the renderer      draws.py     random numbers
    drawing.py   objects and backgrounds at random           language.py  captions, their parser, questions
    folder.py    scenes as files                             inputs.py    scenes:held-out?count=256
    reading.py   finds the objects of a scene without a network
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from toklip_core.scenes.drawing import colour_name, draw_background, draw_objects
from toklip_core.scenes.draws import SPLITS, Draws
from toklip_core.scenes.folder import write_scenes
from toklip_core.scenes.inputs import parse_scenes
from toklip_core.scenes.language import (
    Description,
    Phrase,
    Question,
    ask,
    ask_places,
    describe,
    describe_places,
    parse_caption,
)
from toklip_core.scenes.picture import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT,
    RELATIONS,
    SHAPES,
    SIZES,
    Background,
    SceneObject,
    holds,
    refuse_small,
    render,
)

__all__ = [
    "BACKGROUNDS",
    "CLASSES",
    "COLOURS",
    "HELD_OUT",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "SPLITS",
    "Background",
    "Description",
    "Phrase",
    "Question",
    "Scene",
    "SceneObject",
    "Scenes",
    "colour_name",
    "holds",
    "parse_caption",
    "parse_scenes",
    "render",
    "scene",
    "write_scenes",
]

#: The classes of single objects, "red circle" first: CLASSES[label].
CLASSES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)

_CLASS_IDS = {name: i for i, name in enumerate(CLASSES)}


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A scene. Its objects and background are drawn at once, its picture, captions and questions when needed."""

    index: int
    seed: int
    split: str
    #: Side of ``rgb``.
    size: int
    #: One to three objects; their order has no meaning.
    objects: tuple[SceneObject, ...]
    background: Background
    #: Captions say where each object is.
    places: bool = False

    def __post_init__(self) -> None:
        refuse_small(self.size)

    @cached_property
    def rgb(self) -> NDArray[np.uint8]:
        """The picture's RGB values (size, size, 3), uint8."""
        return render(self.objects, self.background, self.size)

    @cached_property
    def captions(self) -> tuple[str, ...]:
        """Four true captions in different words; each names every object."""
        if self.places:
            return describe_places(self._draws("captions"), self.objects)
        return describe(self._draws("captions"), self.objects, self.background)

    @property
    def caption(self) -> str:
        """The first caption."""
        return self.captions[0]

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        """Questions with answers, one of each kind that the scene allows."""
        return self.questions_of_round(0)

    def questions_of_round(self, number: int) -> tuple[Question, ...]:
        """Return questions as in ``questions``, which are those of round 0; each round is drawn anew.

        >>> one = scene(4)
        >>> [one.questions_of_round(number)[0].text for number in range(2)]
        ['what colour is the ring?', 'what colour is the triangle?']
        """
        return ask(self._draws("questions", number), self.objects, self.split)

    @cached_property
    def questions_of_places(self) -> tuple[Question, ...]:
        """Questions about places: "where is the red circle?", and "what shape is the upper one?" where that is clear.

        They are for training: conversations ask so, and the questions that models are measured by do not.
        """
        return ask_places(self._draws("question by place"), self.objects)

    @property
    def labels(self) -> tuple[int, ...]:
        """The class of each object, as an index into CLASSES."""
        return tuple(_CLASS_IDS[f"{thing.colour} {thing.shape}"] for thing in self.objects)

    @property
    def label(self) -> int | None:
        """The class of the only object, as an index into CLASSES; None if there are several objects."""
        return self.labels[0] if len(self.objects) == 1 else None

    def at(self, size: int) -> Scene:
        """Return the same scene with a picture of another size."""
        return replace(self, size=size)

    def _draws(self, purpose: str, part: int = 0) -> Draws:
        return Draws(self.seed, self.split, self.index, purpose, part)


def scene(
    index: int,
    *,
    seed: int = 0,
    split: str = "train",
    size: int = 64,
    objects: int | None = None,
    background: str | None = None,
    places: bool = False,
) -> Scene:
    """Return one scene of a split.

    Args:
        index: number of the scene, from 0 on; a split has no end.
        seed: seed of the whole split.
        split: "train", "validation" or "held-out".
        size: side of the picture in pixels; the scene itself does not depend on it.
        objects: number of objects, 1 to 3; None: random. Classification needs one object.
        background: kind of background, one of BACKGROUNDS; None: random.
        places: captions say where each object is, and not how objects lie to one another or what the background is:
            words to train a model by that draws.

    Raises:
        ValueError: an argument is out of its range.

    >>> one = scene(0, objects=1)
    >>> one.rgb.shape, one.label is not None
    ((64, 64, 3), True)
    >>> one.caption
    'an orange crescent'
    >>> scene(0, objects=1, places=True).caption
    'an orange crescent on the left'
    """
    if background not in (None, *BACKGROUNDS):
        raise ValueError(f"got the background {background!r}, but there are {', '.join(BACKGROUNDS)}")
    if objects not in (None, 1, 2, 3):
        raise ValueError(f"got {objects} objects, but a scene has 1 to 3")
    draws = Draws(seed, split, index, "picture")
    drawn = 1 + draws.below(3)
    things = draw_objects(draws, split, objects or drawn)
    ground = draw_background(draws, things, background)
    return Scene(index=index, seed=seed, split=split, size=size, objects=things, background=ground, places=places)


@dataclass(frozen=True)
class Scenes:
    """The first ``count`` scenes of a split, as a sequence that a torch DataLoader accepts.

    Raises:
        ValueError: an argument is out of its range.

    >>> scenes = Scenes(1000, split="validation")
    >>> len(scenes), len(scenes[7].captions)
    (1000, 4)
    """

    count: int
    seed: int = 0
    split: str = "train"
    size: int = 64
    #: Number of objects per scene; None: random.
    objects: int | None = None
    #: Kind of background; None: random.
    background: str | None = None
    #: Captions say where each object is.
    places: bool = False

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"got {self.count} scenes, but it must be 0 or more")
        self._scene(0)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Scene:
        if not -self.count <= index < self.count:
            raise IndexError(f"got the index {index}, but there are {self.count} scenes")
        return self._scene(index % self.count)

    def __iter__(self) -> Iterator[Scene]:
        return (self[i] for i in range(self.count))

    def key(self, index: int) -> str:
        """Return the key of a scene in a token store. It depends on everything that the scene depends on.

        >>> Scenes(256, split="held-out", objects=1).key(3)
        'scenes/held-out,objects=1/000003.png'
        """
        defaults = {field.name: field.default for field in fields(self) if field.name not in ("count", "split")}
        others = {name: getattr(self, name) for name, default in defaults.items() if getattr(self, name) != default}
        folder = ",".join([self.split, *(f"{name}={value}" for name, value in others.items())])
        return f"scenes/{folder}/{index:06d}.png"

    def _scene(self, index: int) -> Scene:
        return scene(
            index,
            seed=self.seed,
            split=self.split,
            size=self.size,
            objects=self.objects,
            background=self.background,
            places=self.places,
        )
