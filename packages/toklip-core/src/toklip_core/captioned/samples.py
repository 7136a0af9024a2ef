"""Captioned pictures, or stored ids with captions: what a semantic encoder is trained on.

A sample is a function of (seed, epoch, index): workers, processes and resumed runs see the same.

    sources -CaptionedSamples-> {"pixels" or "ids" (and "teacher"), "caption"} -collate-> batch

Nothing is mirrored: captions say left and right.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple, Protocol, Required, TypedDict

import torch
from PIL import Image
from torch import Tensor

from toklip_core.captioned.readers import CaptionReader, PictureDataset, PictureFiles, PictureTable
from toklip_core.captioned.settings import (
    CaptionedDataset,
    CaptionedPictures,
    CaptionedScenes,
    CaptionedStore,
    CaptionedTable,
    CaptionSource,
)
from toklip_core.pictures import Resize, levels_of, random_crop, resized
from toklip_core.scenes import scene
from toklip_core.store import StoreInfo, TokenStore, refuse_other
from toklip_core.training import Concatenation, Samples, derived_seed, first_usable, shuffled, window_order


class Sample(TypedDict, total=False):
    """One picture and one of its captions: pixels, or ids and the teacher's feature if the store has it."""

    #: (3, S, S), uint8: see :func:`toklip_core.pictures.normalized`.
    pixels: Tensor
    #: (h, w), int64.
    ids: Tensor
    #: (E,), float32, unit norm within the rounding of float16.
    teacher: Tensor
    caption: Required[str]


class Batch(TypedDict, total=False):
    """Samples together: each tensor has the batch in front."""

    pixels: Tensor
    ids: Tensor
    teacher: Tensor
    captions: Required[list[str]]


def collate(samples: Sequence[Sample]) -> Batch:
    """Return a batch: pixels (B, 3, S, S) uint8, ids (B, h, w), teacher (B, E), captions a list of B.

    Pixels stay bytes, so that a worker sends a quarter of what floats would be; ``normalized`` is for the device.
    """
    batch = Batch(captions=[sample["caption"] for sample in samples])
    for name in ("pixels", "ids", "teacher"):
        if name in samples[0]:
            batch[name] = torch.stack([sample[name] for sample in samples])
    return batch


class CaptionedSamples:
    """All sources one after another, as :class:`toklip_core.training.Samples`; :func:`collate` goes with it.

    What cannot be read, or turns out to have no caption, is logged, and the next picture takes its place.

    Args:
        sources: as the settings name them: pixels, or token stores, not both.
        image_size: side of the square.
        resize: how a picture becomes it: see :func:`toklip_core.pictures.resized`.
        seed: of captions and crops.
        smallest_crop: below 1, the square is a random crop of a share of the picture's area from this to 1, its sides
            3:4 to 4:3, stretched: :func:`random_crop`. The published TokLIP has 0.9.
        window: rows of token stores that are shuffled together; see :meth:`order`.

    Raises:
        FileNotFoundError: what a source names is not there.
        LookupError: the library for data sets is not installed.
        ValueError: a source has no captions, stores do not fit one another or the size, or pixels and stores are mixed.
    """

    def __init__(
        self,
        sources: Sequence[CaptionSource],
        *,
        image_size: int,
        resize: Resize,
        seed: int,
        smallest_crop: float = 1.0,
        window: int = 2**16,
    ) -> None:
        if not 0 < smallest_crop <= 1:
            raise ValueError(f"got smallest_crop {smallest_crop}; it is a share of the area, above 0 and up to 1")
        stores = [source for source in sources if isinstance(source, CaptionedStore)]
        if stores and len(stores) < len(sources):
            raise ValueError(
                f"got the token store {stores[0].store} beside sources of pixels, but a batch has either ids or "
                "pixels; encode all pictures, or read all of them as pictures"
            )
        if stores and smallest_crop < 1:
            raise ValueError(
                f"got smallest_crop {smallest_crop}, but the pictures of {stores[0].store} were encoded whole; set it "
                "to 1, or read the pictures themselves"
            )
        self._window = window
        self._parts: list[_Part] = []
        for number, source in enumerate(sources):
            if isinstance(source, CaptionedStore):
                self._parts.append(_Stored(source, image_size, resize, window))
            elif isinstance(source, CaptionedScenes):
                self._parts.append(_Scenes(source, image_size, derived_seed(seed, number)))
            else:
                crop = _Crop(image_size, resize, smallest_crop)
                self._parts.append(_Pictures(_reader(source), crop, derived_seed(seed, number)))
        self._samples = Concatenation(self._parts)
        self._stores = [part.store for part in self._parts if isinstance(part, _Stored)]
        for other in self._stores[1:]:
            first = self._stores[0]
            refuse_other(_of_training(other.info), _of_training(first.info), what=str(other.path), store=first.path)

    @property
    def stored(self) -> StoreInfo | None:
        """What the ids mean, and whose feature ``teacher`` is; None where samples have pixels."""
        return self._stores[0].info if self._stores else None

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        return self._samples[key]

    def order(self, size: int, seed: int, epoch: int) -> Tensor:
        """Return the permutation in which an epoch visits the samples: the argument ``order`` of ``fit``.

        A row of a store is read with its group of 1,000. So groups are shuffled, and then the rows within windows of
        ``window`` rows of consecutive groups, which is what each reading process keeps in memory: with a teacher of
        width 1152, and ids of 256, 190 MB. Stores up to that size, and pixels, are shuffled as one.
        """
        if not self._stores:
            return shuffled(size, seed, epoch)
        groups = [rows for store in self._stores for rows in store.group_rows]
        return window_order(groups, self._window, seed=seed, epoch=epoch)

    def distinct_captions(self, *, most: int = 2**20) -> list[str] | None:
        """Return all captions, each once and sorted; None if they are more than ``most`` or not cheap to know.

        Cheap are stores and tables: their captions are read, no picture, and no further than to one too many.
        """
        known = [captions for part in self._parts if (captions := part.all_captions()) is not None]
        if len(known) < len(self._parts):
            return None
        found: set[str] = set()
        for caption in chain.from_iterable(known):
            found.add(caption)
            if len(found) > most:
                return None
        return sorted(found)


class _Part(Samples[Sample], Protocol):
    def all_captions(self) -> Iterator[str] | None: ...


class _Scenes:
    def __init__(self, source: CaptionedScenes, size: int, seed: int) -> None:
        self._source, self._size, self._seed = source, size, seed

    def __len__(self) -> int:
        return self._source.count

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        number = epoch * len(self) + index
        source = self._source
        drawn = scene(
            number, seed=source.seed, size=self._size, objects=source.objects, background=source.background
        )
        caption = random.Random(derived_seed(self._seed, *key)).choice(drawn.captions)
        return Sample(pixels=levels_of(drawn.pixels), caption=caption)

    def all_captions(self) -> None:
        return None


class _Crop(NamedTuple):
    size: int
    resize: Resize
    smallest: float

    def __call__(self, image: Image.Image, draw: random.Random) -> Image.Image:
        if self.smallest == 1:
            return resized(image, self.size, self.resize)
        box = random_crop(*image.size, self.smallest, draw)
        return image.crop(box).resize((self.size, self.size), Image.Resampling.BICUBIC)


class _Pictures:
    def __init__(self, reader: CaptionReader, crop: _Crop, seed: int) -> None:
        self._reader, self._crop, self._seed = reader, crop, seed

    def __len__(self) -> int:
        return len(self._reader)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        reader = self._reader
        image, captions = first_usable(
            reader.__getitem__, key[1], len(reader), name=reader.place, what="captioned pictures"
        )
        draw = random.Random(derived_seed(self._seed, *key))
        caption = draw.choice(captions)
        return Sample(pixels=levels_of(self._crop(image, draw)), caption=caption)

    def all_captions(self) -> Iterator[str] | None:
        return self._reader.all_captions()


class _Stored:
    """Rows of a token store, each with its caption."""

    def __init__(self, source: CaptionedStore, size: int, resize: Resize, window: int) -> None:
        self.store = TokenStore(source.store, cached_rows=window, features=("teacher",))
        info = self.store.info
        if (info.image_size, info.resize) != (size, resize):
            raise ValueError(
                f"{source.store} has ids of {info.image_size} px (resize {info.resize!r}), but the model takes {size} "
                f"px ({resize!r}): encode again with --size {size} --resize {resize}"
            )
        if missing := sum(not caption for caption in self.store.captions()):
            raise ValueError(
                f"{missing} of {len(self.store)} rows of {source.store} have no caption; put a KEY.txt beside each "
                "picture, and encode into another store"
            )

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        row = self.store[key[1]]
        assert row.caption is not None
        sample = Sample(ids=row.ids, caption=row.caption)
        if row.teacher is not None:
            sample["teacher"] = row.teacher
        return sample

    def all_captions(self) -> Iterator[str]:
        return (caption for caption in self.store.captions() if caption)


def _reader(source: CaptionedPictures | CaptionedTable | CaptionedDataset) -> CaptionReader:
    match source:
        case CaptionedPictures():
            return PictureFiles(source)
        case CaptionedTable():
            return PictureTable(source)
        case CaptionedDataset():
            return PictureDataset(source)


def _of_training(info: StoreInfo) -> StoreInfo:
    """What has to agree between stores that are read together."""
    return info.model_copy(update={"pooled": None, "tokens": None})
