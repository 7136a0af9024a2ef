"""Training pictures of a tokenizer: scenes, crops of photographs, and folders, mixed.

A sample is a function of (seed, epoch, index), so workers, processes and resumed runs see the same ones.
"""

from __future__ import annotations

import pickle
import random
from array import array
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

import numpy as np
import torch
from PIL import Image
from toklip_core.evaluation import refuse_unreadable
from toklip_core.pictures import (
    entries,
    find_pictures,
    list_pictures,
    normalized,
    picture_to_rgb,
    random_square,
    to_pixels,
)
from toklip_core.scenes import scene
from toklip_core.training import Concatenation, Samples, derived_seed, first_usable
from torch import Tensor

from toklip_vq.training.settings import FolderSource, HeldOutFolder, PhotographsSource, ScenesSource, VQSource

T = TypeVar("T")

#: Photographs in the public domain (CC0 or NASA) that are part of scikit-image, so they need no download.
PHOTOGRAPHS = (
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "coffee",
    "grass",
    "gravel",
    "hubble_deep_field",
    "retina",
    "rocket",
)


def open_sources(sources: Sequence[VQSource], *, size: int, seed: int) -> Concatenation[Tensor]:
    """Return the training pictures, one source after another; each is (3, size, size) in [-1, 1].

    Args:
        sources: settings of the sources.
        size: side of a picture.
        seed: seed of crops and flips.

    Raises:
        FileNotFoundError: a folder is not there or has no pictures.
        LookupError: scikit-image is not installed, and photographs are asked for.
    """
    return Concatenation([_open(source, size, derived_seed(seed, i)) for i, source in enumerate(sources)])


class _Scenes:
    def __init__(self, source: ScenesSource, size: int) -> None:
        self._source, self._size = source, size

    def __len__(self) -> int:
        return self._source.count

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        epoch, index = key
        drawn = scene(epoch * len(self) + index, seed=self._source.seed, size=self._size)
        return normalized(picture_to_rgb(drawn.rgb))


class _Photographs:
    """Square crops at all scales; the logarithm of a crop's side is uniform from the sample's to the photograph's."""

    def __init__(self, source: PhotographsSource, size: int, seed: int) -> None:
        self._count, self._size, self._seed = source.count, size, seed
        self._images = photographs()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        draw = random.Random(derived_seed(self._seed, *key))
        image = draw.choice(self._images)
        short = min(image.size)
        side = short * (self._size / short) ** draw.random() if short > self._size else short
        return normalized(picture_to_rgb(random_square(image, side, self._size, draw, flip=True)))


class _Folder:
    def __init__(self, source: FolderSource, size: int, seed: int) -> None:
        self._source, self._size, self._seed = source, size, seed
        self._entries = _PickleArray(entries(find_pictures([source.folder], max_pixels=source.max_pixels)))

    def __len__(self) -> int:
        return self._source.count or len(self._entries)

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        epoch, index = key
        draw = random.Random(derived_seed(self._seed, *key))
        found = self._entries
        image = first_usable(
            lambda number: found[number].image(),
            epoch * len(self) + index,
            len(found),
            name=lambda number: found[number].key,
            what="pictures",
        )
        # As in LlamaGen's random_crop_arr (dataset/augmentation.py): a side of smallest_crop_side
        # to 1 times the short side.
        side = min(image.size) * draw.uniform(self._source.smallest_crop_side, 1.0)
        return normalized(picture_to_rgb(random_square(image, side, self._size, draw, flip=self._source.flip)))


class _PickleArray(Generic[T]):
    """Objects as one array of their pickles, which forked workers share; objects would be copied as they are used."""

    def __init__(self, objects: Iterable[T]) -> None:
        pickles, self._ends = bytearray(), array("q", [0])
        for each in objects:
            pickles += pickle.dumps(each, pickle.HIGHEST_PROTOCOL)
            self._ends.append(len(pickles))
        self._pickles = np.frombuffer(pickles, np.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: int) -> T:
        found: T = pickle.loads(self._pickles[self._ends[number] : self._ends[number + 1]].data)
        return found


def photographs() -> list[Image.Image]:
    """Return the photographs as RGB pictures.

    Raises:
        LookupError: scikit-image is not installed.
    """
    try:
        from skimage import data
    except ModuleNotFoundError as error:
        raise LookupError("scikit-image is not installed: pip install 'toklip-core[train]'") from error
    return [Image.fromarray(getattr(data, name)()).convert("RGB") for name in PHOTOGRAPHS]


def held_out_pictures(config: HeldOutFolder, *, size: int) -> Tensor | None:
    """Return the held-out pictures (N, 3, size, size) in [-1, 1] of a run, or None if its settings name none.

    Raises:
        FileNotFoundError: the folder is not there or has no pictures.
        ValueError: some of them cannot be read.
    """
    if config.folder is None and not config.scenes:
        return None
    if config.folder is None:
        rgb = np.stack([scene(i, size=size, split="held-out").rgb for i in range(config.scenes)])
        return normalized(torch.from_numpy(rgb).permute(0, 3, 1, 2))
    found = list_pictures(find_pictures([config.folder], max_pixels=config.max_pixels))
    places = np.linspace(0, len(found) - 1, min(config.pictures, len(found))).round().astype(int)
    chosen = [found[place] for place in places]
    refuse_unreadable(chosen)
    return torch.stack([to_pixels(picture.read(), size) for picture in chosen])


def _open(source: VQSource, size: int, seed: int) -> Samples[Tensor]:
    match source:
        case ScenesSource():
            return _Scenes(source, size)
        case PhotographsSource():
            return _Photographs(source, size, seed)
        case FolderSource():
            return _Folder(source, size, seed)
