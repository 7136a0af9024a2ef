"""Scenes as the pictures, labels and captions that evaluations read."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image

from toklip_core.pictures.lazy import LabelledPictures, LazyPair, LazyPicture
from toklip_core.scenes import CLASSES, Scenes


def scene_pictures(scenes: Scenes) -> list[LazyPicture]:
    """Return scenes as pictures; they are drawn when they are read."""

    def drawn(index: int) -> Callable[[], Image.Image]:
        return lambda: Image.fromarray(scenes[index].rgb)

    return [LazyPicture(scenes.key(index), drawn(index)) for index in range(len(scenes))]


def scene_pairs(scenes: Scenes) -> list[LazyPair]:
    """Return scenes with their four captions."""
    pictures = zip(scene_pictures(scenes), scenes, strict=True)
    return [LazyPair(picture, scene.captions) for picture, scene in pictures]


def labelled_scenes(scenes: Scenes) -> LabelledPictures:
    """Return scenes of one object, and all 64 CLASSES as captions name them: 'a red circle', 'an orange star'.

    Raises:
        ValueError: the scenes may have several objects.
    """
    if scenes.objects != 1:
        raise ValueError("scenes of several objects have no class; name some of one object: scenes:SPLIT?objects=1")
    names = [f"an {name}" if name[0] in "aeiou" else f"a {name}" for name in CLASSES]
    return LabelledPictures(names, scene_pictures(scenes), [scene.labels[0] for scene in scenes])
