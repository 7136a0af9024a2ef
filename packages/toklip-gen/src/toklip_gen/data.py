"""What a generator is trained on: ids from token stores, or pixels, each with a class or a caption.

A sample is a function of (seed, epoch, index), down to the view that is drawn of a stored picture and to the condition
that is dropped: workers, processes and resumed runs see the same.

    sources -GeneratorSamples-> {"ids" or "pixels", "label" or "caption", "drop"} -collate-> batch
"""

from __future__ import annotations

import logging
import random
from bisect import bisect_right
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from pathlib import PurePosixPath
from typing import Protocol, Required, TypedDict, cast

import numpy as np
import torch
from PIL import Image
from toklip_core.captions import CaptionedSamples, window_order
from toklip_core.classes import class_folders
from toklip_core.crops import UPRIGHT, VIEWS
from toklip_core.data import PictureError, Resize
from toklip_core.parts import CROPS, StoreInfo, refuse_other
from toklip_core.scenes import CLASSES, scene
from toklip_core.sources import CaptionedScenes, CaptionSource
from toklip_core.store import TokenStore
from toklip_core.training import derived_seed, shuffled
from torch import Tensor

from toklip_gen.config import ClassCondition
from toklip_gen.settings import ClassFolders, GeneratorTrainConfig, StoredIds

#: Rows of token stores that are shuffled together, and kept in memory by each reading process.
_WINDOW = 2**16
#: Of a store with crops a row is 21 grids.
_WINDOW_OF_CROPS = 2**13

_log = logging.getLogger(__name__)


class Sample(TypedDict, total=False):
    """A picture and what it shows."""

    #: (3, S, S), uint8.
    pixels: Tensor
    #: (h, w), int64.
    ids: Tensor
    label: int
    caption: str
    #: Whether the condition is left out.
    drop: bool


class Batch(TypedDict, total=False):
    """Samples together: each tensor has the batch in front."""

    pixels: Tensor
    ids: Tensor
    #: Classes, or captions.
    prompts: Required[list[int] | list[str]]
    #: (B,), bool.
    drop: Required[Tensor]


def collate(samples: Sequence[Sample]) -> Batch:
    """Return a batch."""
    drop = torch.tensor([sample["drop"] for sample in samples])
    prompts = [sample["caption"] if "caption" in sample else sample["label"] for sample in samples]
    batch = Batch(prompts=cast(list[str], prompts), drop=drop)
    for name in ("pixels", "ids"):
        if name in samples[0]:
            batch[name] = torch.stack([sample[name] for sample in samples])
    return batch


class _Part(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, key: tuple[int, int]) -> Sample: ...


class GeneratorSamples:
    """All sources one after another, as :class:`toklip_core.training.Samples`; :func:`collate` goes with it.

    Args:
        config: of the run.

    Raises:
        FileNotFoundError: what a source names is not there.
        ValueError: a row has neither class nor caption, the classes are not those of the settings, or stores do not fit
            one another or the settings.
    """

    def __init__(self, config: GeneratorTrainConfig) -> None:
        self._dropout, self._seed = config.condition_dropout, config.run.seed
        of_class = isinstance(config.condition, ClassCondition)
        sources = [source for source in config.data if isinstance(source, StoredIds)]
        self._stores: list[TokenStore] = []
        if sources:
            crops = any(source.crops and TokenStore(source.store).info.augment is not None for source in sources)
            self._window = _WINDOW_OF_CROPS if crops else _WINDOW
            kept = {CROPS} if crops else set()
            self._stores = [TokenStore(source.store, cached_rows=self._window, features=kept) for source in sources]
            self._refuse_other_stores(config)
        names = class_names(self._stores, config.condition) if of_class else None
        #: Folder -> class, where pictures or stores are read by class.
        self.classes: dict[str, int] = dict(names or {})
        if self.classes:
            self._warn_of_sorted_rows()
        self._parts: list[_Part] = []
        for number, source in enumerate(config.data):
            seed = derived_seed(config.run.seed, number)
            if isinstance(source, StoredIds):
                self._parts.append(_Stored(self._stores[number], source.crops, names, seed))
            elif isinstance(source, ClassFolders):
                folders = _Folders(source, config.image_size, cast(ClassCondition, config.condition), seed)
                self._parts.append(folders)
                self.classes = self.classes or folders.classes
            elif of_class:
                _refuse_other_than_of_scenes(cast(ClassCondition, config.condition))
                self._parts.append(_Scenes(cast(CaptionedScenes, source), config.image_size))
                self.classes = self.classes or {name: number for number, name in enumerate(CLASSES)}
            else:
                caption = partial(_captioned, size=config.image_size, resize=config.resize, seed=seed)
                self._parts.append(cast(_Part, caption(source)))
        self._ends = list(accumulate(len(part) for part in self._parts))

    @property
    def stored(self) -> StoreInfo | None:
        """What the ids mean; None where samples have pixels."""
        return self._stores[0].info if self._stores else None

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        part = bisect_right(self._ends, index)
        sample = self._parts[part][epoch, index - (self._ends[part - 1] if part else 0)]
        # Of the sample, not of the step: so two processes drop what one would.
        drop = random.Random(derived_seed(self._seed, epoch, index, -1)).random() < self._dropout
        return Sample(**{**sample, "drop": drop})

    def order(self, size: int, seed: int, epoch: int) -> Tensor:
        """Return the permutation in which an epoch visits the samples: the argument ``order`` of ``fit``."""
        if not self._stores:
            return shuffled(size, seed, epoch)
        groups = [rows for store in self._stores for rows in store.group_rows]
        return window_order(groups, self._window, seed=seed, epoch=epoch)

    def _warn_of_sorted_rows(self) -> None:
        size = sum(map(len, self._stores))
        if size <= self._window:
            return
        labels = np.array([self.classes[_folder_of(key)] for store in self._stores for key in store.keys()])
        held, fair = (
            len(np.unique(labels[order[: self._window]]))
            for order in (self.order(size, self._seed, 0), shuffled(size, self._seed, 0))
        )
        if 2 * held < fair:
            _log.warning(
                "%d rows that are shuffled together have %d classes, and %d if the stores were not sorted by class, so "
                "batches are of few classes: encode into another store with `toklip encode --shuffle`",
                self._window,
                held,
                fair,
            )

    def _refuse_other_stores(self, config: GeneratorTrainConfig) -> None:
        first = self._stores[0]
        for other in self._stores[1:]:
            mine, theirs = (
                store.info.model_copy(update={"pooled": None, "tokens": None, "teacher": None, "augment": None})
                for store in (other, first)
            )
            refuse_other(mine, theirs, what=str(other.path), store=first.path)
        if (first.info.image_size, first.info.resize) != (config.image_size, config.resize):
            raise ValueError(
                f"{first.path} has ids of {first.info.image_size} px (resize {first.info.resize!r}), but the settings "
                f"say {config.image_size} px ({config.resize!r})"
            )


def class_names(stores: Sequence[TokenStore], condition: object) -> dict[str, int]:
    """Return name -> class of the folders that the pictures of stores lay in: sorted, as numbers if all are numbers.

    Raises:
        ValueError: there are more or fewer than the condition has.
    """
    assert isinstance(condition, ClassCondition)
    found = {_folder_of(key) for store in stores for key in store.keys()}
    names = sorted(found, key=int) if all(name.isdecimal() for name in found) else sorted(found)
    if stores and len(names) != condition.classes:
        raise ValueError(
            f"the pictures of {', '.join(str(store.path) for store in stores)} lie in {len(names)} folders (such as "
            f"{', '.join(names[:3])}), but condition.classes is {condition.classes}: a picture's folder is its class"
        )
    return {name: number for number, name in enumerate(names)}


def class_of(key: str, classes: dict[str, int]) -> int:
    """Return the class of a stored picture, by the classes of a training.

    Raises:
        ValueError: the training has no such folder.
    """
    folder = _folder_of(key)
    number = classes.get(folder, classes.get(folder.replace("_", " ")))
    if number is None:
        known = ", ".join(list(classes)[:3])
        raise ValueError(
            f"{key!r} lies in the folder {folder!r}, which is no class of the training ({len(classes)}, such as "
            f"{known}): name held-out pictures' folders as there"
        )
    return number


class _Stored:
    """Rows of a token store."""

    def __init__(self, store: TokenStore, crops: bool, classes: dict[str, int] | None, seed: int) -> None:
        self._store, self._classes, self._seed = store, classes, seed
        self._views: Sequence[int] = ()
        if crops and store.info.augment is not None:
            self._views = range(VIEWS) if classes is not None else UPRIGHT
        if classes is None and (missing := sum(not caption for caption in store.captions())):
            raise ValueError(
                f"{missing} of {len(store)} rows of {store.path} have no caption; put a KEY.txt beside each picture, "
                "and encode into another store"
            )

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        row = self._store[key[1]]
        ids = row.ids
        if self._views and row.crops is not None:
            ids = row.crops[random.Random(derived_seed(self._seed, *key)).choice(self._views)]
        if self._classes is not None:
            return Sample(ids=ids, label=self._classes[_folder_of(row.key)])
        assert row.caption is not None
        return Sample(ids=ids, caption=row.caption)


class _Folders:
    """Crops of pictures in folders of classes."""

    def __init__(self, source: ClassFolders, size: int, condition: ClassCondition, seed: int) -> None:
        self._source, self._size, self._seed = source, size, seed
        self._found = class_folders(source.folder)
        if len(self._found.names) != condition.classes:
            raise ValueError(
                f"{source.folder} has {len(self._found.names)} classes, but condition.classes is {condition.classes}"
            )

    @property
    def classes(self) -> dict[str, int]:
        """Name of a folder, _ being a space, -> class."""
        return {name: number for number, name in enumerate(self._found.names)}

    def __len__(self) -> int:
        return len(self._found.pictures)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        image, label = self._readable(key[1])
        draw = random.Random(derived_seed(self._seed, *key))
        side = min(image.size) * draw.uniform(self._source.smallest_crop, 1.0)
        left, top = draw.uniform(0, image.width - side), draw.uniform(0, image.height - side)
        box = (left, top, left + side, top + side)
        crop = image.resize((self._size, self._size), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
        if self._source.flip and draw.random() < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return Sample(pixels=torch.from_numpy(np.array(crop)).permute(2, 0, 1).contiguous(), label=label)

    def _readable(self, index: int) -> tuple[Image.Image, int]:
        """The picture of a number, or the next one that can be read: one broken file must not end a week's run."""
        for offset in range(len(self)):
            number = (index + offset) % len(self)
            picture = self._found.pictures[number]
            try:
                return picture.read(), self._found.labels[number]
            except PictureError as error:
                _log.warning("%s is left out: %s", picture.name, error)
        raise ValueError(f"no picture below {self._source.folder} can be read")


class _Scenes:
    """Scenes of one object, new ones each epoch; their class is colour and shape."""

    def __init__(self, source: CaptionedScenes, size: int) -> None:
        self._source, self._size = source, size

    def __len__(self) -> int:
        return self._source.count

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        number, source = epoch * len(self) + index, self._source
        drawn = scene(number, seed=source.seed, size=self._size, objects=1, background=source.background)
        return Sample(pixels=torch.from_numpy(drawn.pixels).permute(2, 0, 1).contiguous(), label=drawn.labels[0])


def _refuse_other_than_of_scenes(condition: ClassCondition) -> None:
    if condition.classes != len(CLASSES):
        raise ValueError(
            f"scenes have {len(CLASSES)} classes, colour and shape, but condition.classes is {condition.classes}; set "
            f"it to {len(CLASSES)}"
        )


def _captioned(source: CaptionSource, *, size: int, resize: Resize, seed: int) -> CaptionedSamples:
    return CaptionedSamples([source], image_size=size, resize=resize, seed=seed)


def _folder_of(key: str) -> str:
    return PurePosixPath(key).parent.name
