"""The pictures that a tokenizer is trained on: scenes, crops of photographs, and folders, mixed.

A sample is a function of (seed, epoch, index): workers, processes and resumed runs see the same.
"""

from __future__ import annotations

import logging
import random
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np
import torch
from PIL import Image
from toklip_core.evaluation import refuse_unreadable
from toklip_core.pictures import Entry, PictureError, entries, find_pictures, found_pictures, normalized, to_pixels
from toklip_core.scenes import scene
from toklip_core.training import derived_seed
from torch import Tensor

from toklip_vq.training.settings import FolderSource, HeldOutConfig, PhotographsSource, ScenesSource, Source

#: Photographs in the public domain (CC0 or NASA) that come with scikit-image itself, and need no download.
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

_log = logging.getLogger(__name__)


class Mixture:
    """All sources one after another, as :class:`toklip_core.training.Samples`; a sample is (3, size, size) in [-1, 1].

    Args:
        sources: as the settings name them.
        size: side of a sample.
        seed: of crops and flips.

    Raises:
        FileNotFoundError: a folder is not there or has no pictures.
        LookupError: scikit-image is not installed, and photographs are asked for.
    """

    def __init__(self, sources: Sequence[Source], *, size: int, seed: int) -> None:
        self._parts = [_part(source, size, derived_seed(seed, i)) for i, source in enumerate(sources)]
        self._ends = list(accumulate(len(part) for part in self._parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        epoch, index = key
        part = bisect_right(self._ends, index)
        levels = self._parts[part][epoch, index - (self._ends[part - 1] if part else 0)]
        return normalized(torch.from_numpy(np.array(levels)).permute(2, 0, 1))


class _Scenes:
    def __init__(self, source: ScenesSource, size: int) -> None:
        self._source, self._size = source, size

    def __len__(self) -> int:
        return self._source.count

    def __getitem__(self, key: tuple[int, int]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        epoch, index = key
        return scene(epoch * len(self) + index, seed=self._source.seed, size=self._size).pixels


class _Photographs:
    """Square crops at all scales: the logarithm of the side is uniform, from the sample's to the photograph's."""

    def __init__(self, source: PhotographsSource, size: int, seed: int) -> None:
        self._count, self._size, self._seed = source.count, size, seed
        self._images = photographs()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, key: tuple[int, int]) -> Image.Image:
        draw = random.Random(derived_seed(self._seed, *key))
        image = draw.choice(self._images)
        short = min(image.size)
        side = short * (self._size / short) ** draw.random() if short > self._size else short
        return _cropped(image, side, self._size, draw, flip=True)


class _Folder:
    def __init__(self, source: FolderSource, size: int, seed: int) -> None:
        self._source, self._size, self._seed = source, size, seed
        self._entries = list(entries(find_pictures([source.folder], max_pixels=source.max_pixels)))

    def __len__(self) -> int:
        return self._source.count or len(self._entries)

    def __getitem__(self, key: tuple[int, int]) -> Image.Image:
        epoch, index = key
        number = epoch * len(self) + index
        draw = random.Random(derived_seed(self._seed, *key))
        image = self._readable(number)
        # As LlamaGen's random_crop_arr (dataset/augmentation.py): smallest_crop to 1 of the short side, anywhere.
        side = min(image.size) * draw.uniform(self._source.smallest_crop, 1.0)
        return _cropped(image, side, self._size, draw, flip=self._source.flip)

    def _readable(self, number: int) -> Image.Image:
        """The picture of a number, or the next one that can be read: one broken file must not end a week's run."""
        for entry in self._in_turn(number):
            try:
                return entry.image()
            except PictureError as error:
                _log.warning("%s is left out: %s", entry.key, error)
        raise ValueError(f"no picture below {self._source.folder} can be read")

    def _in_turn(self, number: int) -> Iterator[Entry]:
        for offset in range(len(self._entries)):
            yield self._entries[(number + offset) % len(self._entries)]


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


def held_out_pictures(config: HeldOutConfig, *, size: int) -> Tensor:
    """Return the pictures that a run is evaluated on, (N, 3, size, size) in [-1, 1].

    Raises:
        FileNotFoundError: the folder is not there or has no pictures.
        ValueError: some of them cannot be read.
    """
    if config.folder is None:
        levels = np.stack([scene(i, size=size, split="held-out").pixels for i in range(config.scenes)])
        return normalized(torch.from_numpy(levels).permute(0, 3, 1, 2))
    found = found_pictures(find_pictures([config.folder]))
    chosen = found[:: max(len(found) // config.pictures, 1)][: config.pictures]
    refuse_unreadable(chosen)
    return torch.stack([to_pixels(picture.read(), size) for picture in chosen])


def _part(source: Source, size: int, seed: int) -> _Scenes | _Photographs | _Folder:
    match source:
        case ScenesSource():
            return _Scenes(source, size)
        case PhotographsSource():
            return _Photographs(source, size, seed)
        case FolderSource():
            return _Folder(source, size, seed)


def _cropped(image: Image.Image, side: float, size: int, draw: random.Random, *, flip: bool) -> Image.Image:
    left, top = draw.uniform(0, image.width - side), draw.uniform(0, image.height - side)
    # reducing_gap: a box filter first where the crop is much larger than the sample, as the published loaders do.
    crop = image.resize(
        (size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side), reducing_gap=2.0
    )
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip and draw.random() < 0.5 else crop
