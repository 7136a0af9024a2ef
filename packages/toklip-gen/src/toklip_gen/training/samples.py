"""Training samples of generators: ids from token stores, or pixels, each with a class or a caption.

A sample is a function of (seed, epoch, index), including the random view of a stored picture and the dropped condition,
so workers, processes and resumed runs see the same ones.

    sources -GeneratorSamples-> {"ids" or "rgb", "label" or "caption", "drop"} -collate-> batch
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Required, TypedDict, cast

import numpy as np
import torch
from toklip_core.captioned import CaptionedSamples, CaptionedScenes, CaptionSource
from toklip_core.evaluation import (
    class_folders,
    class_name,
    folders_above,
    folders_of_keys,
    refuse_duplicates,
    sort_classes,
)
from toklip_core.pictures import UPRIGHT, VIEWS, LabelledPictures, LazyPicture, picture_to_rgb, random_square
from toklip_core.scenes import CLASSES, scene
from toklip_core.store import CROPS, RowCache, StoreInfo, TokenStore, refuse_mixed, refuse_other_squares
from toklip_core.training import Concatenation, Samples, derived_seed, first_usable, shuffled, window_order
from torch import Tensor

from toklip_gen.generator import ClassCondition
from toklip_gen.training.settings import ClassFolders, GeneratorTrainConfig, StoredIds

_log = logging.getLogger(__name__)


class GeneratorSample(TypedDict, total=False):
    """A picture with its class or caption."""

    #: (3, S, S), uint8.
    rgb: Tensor
    #: (h, w, Q), int64.
    ids: Tensor
    label: int
    caption: str
    #: Whether the condition is dropped, for guidance.
    drop: bool


class Batch(TypedDict, total=False):
    """Samples of a batch; the first dimension of each tensor is B."""

    rgb: Tensor
    ids: Tensor
    #: Classes, or captions.
    prompts: Required[list[int] | list[str]]
    #: (B,), bool.
    drop: Required[Tensor]


def collate(samples: Sequence[GeneratorSample]) -> Batch:
    """Return a batch."""
    drop = torch.tensor([sample["drop"] for sample in samples])
    prompts = [sample["caption"] if "caption" in sample else sample["label"] for sample in samples]
    batch = Batch(prompts=cast(list[str], prompts), drop=drop)
    for name in ("rgb", "ids"):
        if name in samples[0]:
            batch[name] = torch.stack([sample[name] for sample in samples])
    return batch


class GeneratorSamples:
    """Samples of all sources, one source after another; batch them with :func:`collate`.

    Args:
        config: settings of the run.
        window: number of rows of token stores that are shuffled together, and that each reading process keeps in
            memory.
        window_of_crops: the same for stores with crops, where a row has 21 grids.

    Raises:
        FileNotFoundError: files of a source are missing.
        ValueError: a row has neither class nor caption, the classes are not those of the settings, or stores do not fit
            one another or the settings.
    """

    def __init__(
        self, config: GeneratorTrainConfig, *, window: int = 2**16, window_of_crops: int = 2**13
    ) -> None:
        self._dropout, self._seed = config.condition_dropout, config.run.seed
        of_class = isinstance(config.condition, ClassCondition)
        sources = [source for source in config.data if isinstance(source, StoredIds)]
        self._stores: list[TokenStore] = []
        if sources:
            cache = RowCache(window)
            self._stores = [
                TokenStore(source.store, cached_rows=cache, features=[CROPS] if source.crops else [])
                for source in sources
            ]
            with_crops = zip(sources, self._stores, strict=True)
            if any(source.crops and store.info.augment is not None for source, store in with_crops):
                cache.rows = window_of_crops
            self._window = cache.rows
            refuse_mixed([(store.path, store.info) for store in self._stores])
            first = self._stores[0]
            refuse_other_squares(first.info, first.path, image_size=config.image_size, resize=config.resize)
        #: Name -> class for a generator of classes, the same for all sources.
        self.classes: dict[str, int] = {}
        if of_class:
            condition = cast(ClassCondition, config.condition)
            labelled = [_classes_of(source, self._stores, number) for number, source in enumerate(config.data)]
            self.classes = numbered_classes(labelled, condition)
            if self._stores:
                self._warn_of_sorted_rows([name for one in labelled for name in one.of_pictures])
        by_source: list[Samples[GeneratorSample]] = []
        for number, source in enumerate(config.data):
            seed = derived_seed(config.run.seed, number)
            if of_class:
                labels = [self.classes[name] for name in labelled[number].of_pictures]
            if isinstance(source, StoredIds):
                by_source.append(_StoreSamples(self._stores[number], source.crops, labels if of_class else None, seed))
            elif isinstance(source, ClassFolders):
                pictures = cast(LabelledPictures, labelled[number].pictures).pictures
                by_source.append(_Folders(source, pictures, labels, config.image_size, seed))
            elif of_class:
                numbers = [self.classes[name] for name in CLASSES]
                by_source.append(_Scenes(cast(CaptionedScenes, source), config.image_size, numbers))
            else:
                captioned = CaptionedSamples(
                    [cast(CaptionSource, source)], image_size=config.image_size, resize=config.resize, seed=seed
                )
                by_source.append(cast(Samples[GeneratorSample], captioned))
        self._samples = Concatenation(by_source)

    @property
    def stored(self) -> StoreInfo | None:
        """Info of the stores; None if samples have pixels."""
        return self._stores[0].info if self._stores else None

    @property
    def store_checksums(self) -> list[str]:
        """Checksums of the stores, which with the settings say what the samples are."""
        return [store.checksum for store in self._stores]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, key: tuple[int, int]) -> GeneratorSample:
        epoch, index = key
        # A function of the sample and not of the step, so that two processes drop the same conditions as one.
        drop = random.Random(derived_seed(self._seed, epoch, index, -1)).random() < self._dropout
        return GeneratorSample(**{**self._samples[key], "drop": drop})

    def order(self, size: int, seed: int, epoch: int) -> Tensor:
        """Return the permutation in which an epoch visits the samples."""
        if not self._stores:
            return shuffled(size, seed, epoch)
        groups = [rows for store in self._stores for rows in store.group_rows]
        return window_order(groups, self._window, seed=seed, epoch=epoch)

    def _warn_of_sorted_rows(self, classes: Sequence[str]) -> None:
        size = len(classes)
        if size <= self._window:
            return
        labels = np.array([self.classes[name] for name in classes])
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


class SourceClasses(NamedTuple):
    """The classes of a source, by name."""

    #: Name of the source, for messages.
    what: str
    #: All classes, in the source's own order, including those without pictures.
    names: Sequence[str]
    #: Class of each picture; empty for scenes, which are drawn when they are needed.
    of_pictures: Sequence[str] = ()
    #: Pictures of a folder, read on demand.
    pictures: LabelledPictures | None = None


def numbered_classes(sources: Sequence[SourceClasses], condition: ClassCondition) -> dict[str, int]:
    """Return name -> class for all sources together, by one rule, so that a folder and its store give the same classes.

    The order is that of the condition's names if it has any, or else that of the source if all sources agree, or else
    that of :func:`toklip_core.evaluation.sort_classes`.

    Raises:
        ValueError: the number or the names of classes differ from those of the condition.
    """
    found = list(dict.fromkeys(name for source in sources for name in source.names))
    names = found if len({tuple(source.names) for source in sources}) == 1 else sort_classes(found)
    what = ", ".join(source.what for source in sources)
    if len(names) != condition.classes:
        raise ValueError(
            f"{what}: {len(names)} classes (such as {', '.join(names[:3])}), but condition.classes is "
            f"{condition.classes}; a class is a folder, FOLDER/CLASS/PICTURE, or a colour and shape of scenes"
        )
    if condition.names is not None:
        if other := {*names} ^ {*condition.names}:
            raise ValueError(f"{what}: the class {min(other)!r} is in the data or in condition.names, and not in both")
        names = list(condition.names)
    return {name: number for number, name in enumerate(names)}


def classes_of(keys: Sequence[str], classes: Mapping[str, int], what: str) -> list[int]:
    """Return the classes of a held-out store's pictures, by the names of classes in the training.

    A picture is in the folder of its class, or below it, as in the training.

    Raises:
        ValueError: the training has no such class.
    """
    found = list(map(class_name, folders_of_keys(keys, what)))
    parents = [folders_above(key)[-1] for key in keys]
    if not {*found} <= classes.keys():
        found = list(map(class_name, parents))
    for key, name, parent in zip(keys, found, parents, strict=True):
        if name not in classes:
            raise ValueError(
                f"{key!r} lies in the folder {parent!r}, which is not a class of the training ({len(classes)}, such as "
                f"{', '.join(list(classes)[:3])}): name held-out pictures' folders as there"
            )
    return [classes[name] for name in found]


def _classes_of(source: object, stores: Sequence[TokenStore], number: int) -> SourceClasses:
    """Return the classes of a source in the settings."""
    if isinstance(source, StoredIds):
        store = stores[number]
        folders = folders_of_keys(list(store.keys()), str(store.path))
        names = refuse_duplicates(list(map(class_name, sort_classes({*folders}))), "class")
        return SourceClasses(str(store.path), names, list(map(class_name, folders)))
    if isinstance(source, ClassFolders):
        found = class_folders(source.folder, max_pixels=source.max_pixels)
        return SourceClasses(str(source.folder), found.names, [found.names[label] for label in found.labels], found)
    return SourceClasses("scenes", CLASSES)


class _StoreSamples:
    """Rows of a token store."""

    def __init__(self, store: TokenStore, crops: bool, labels: Sequence[int] | None, seed: int) -> None:
        self._store, self._seed = store, seed
        self._labels = None if labels is None else np.array(labels)
        self._views: Sequence[int] = ()
        if crops and store.info.augment is not None:
            self._views = range(VIEWS) if labels is not None else UPRIGHT
        if labels is None:
            store.refuse_missing_captions()

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, key: tuple[int, int]) -> GeneratorSample:
        row = self._store[key[1]]
        ids = row.ids
        if self._views and row.crops is not None:
            ids = row.crops[random.Random(derived_seed(self._seed, *key)).choice(self._views)]
        if self._labels is not None:
            return GeneratorSample(ids=ids, label=int(self._labels[key[1]]))
        assert row.caption is not None
        return GeneratorSample(ids=ids, caption=row.caption)


class _Folders:
    """Crops of pictures in folders of classes."""

    def __init__(
        self, source: ClassFolders, pictures: Sequence[LazyPicture], labels: Sequence[int], size: int, seed: int
    ) -> None:
        self._source, self._size, self._seed = source, size, seed
        self._pictures, self._labels = pictures, labels

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, key: tuple[int, int]) -> GeneratorSample:
        pictures, labels = self._pictures, self._labels
        image, label = first_usable(
            lambda number: (pictures[number].read(), labels[number]),
            key[1],
            len(self),
            name=lambda number: pictures[number].name,
            what="pictures",
        )
        draw = random.Random(derived_seed(self._seed, *key))
        side = min(image.size) * draw.uniform(self._source.smallest_crop_side, 1.0)
        crop = random_square(image, side, self._size, draw, flip=self._source.flip)
        return GeneratorSample(rgb=picture_to_rgb(crop), label=label)


class _Scenes:
    """Scenes of one object, new ones each epoch; their class is colour and shape."""

    def __init__(self, source: CaptionedScenes, size: int, numbers: Sequence[int]) -> None:
        self._source, self._size, self._numbers = source, size, numbers

    def __len__(self) -> int:
        return self._source.count

    def __getitem__(self, key: tuple[int, int]) -> GeneratorSample:
        epoch, index = key
        number, source = epoch * len(self) + index, self._source
        drawn = scene(number, seed=source.seed, size=self._size, objects=1, background=source.background)
        return GeneratorSample(rgb=picture_to_rgb(drawn.rgb), label=self._numbers[drawn.labels[0]])
