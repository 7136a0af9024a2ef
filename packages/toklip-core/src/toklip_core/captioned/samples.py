"""Training samples of semantic encoders: captioned pictures, or stored ids with captions.

A sample is a function of (seed, epoch, index), so workers, processes and resumed runs see the same ones.

    sources -CaptionedSamples-> {"rgb" or "ids" (and "teacher"), "caption"} -collate-> batch

Pictures are not mirrored, because captions say left and right.
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
from toklip_core.pictures import Resize, cropped, picture_to_rgb, random_crop, resized
from toklip_core.scenes import scene
from toklip_core.store import RowCache, StoreInfo, TokenStore, refuse_mixed, refuse_other_squares
from toklip_core.training import Concatenation, Samples, derived_seed, first_usable, shuffled, window_order


class CaptionSample(TypedDict, total=False):
    """A picture with one of its captions: rgb, or ids and, if the store has it, the teacher's pooled vector."""

    #: (3, S, S), uint8; see :func:`toklip_core.pictures.normalized`.
    rgb: Tensor
    #: (h, w, Q), int64.
    ids: Tensor
    #: (E,), float32, of unit norm up to the rounding of float16.
    teacher: Tensor
    caption: Required[str]


class Batch(TypedDict, total=False):
    """Samples of a batch; the first dimension of each tensor is B."""

    rgb: Tensor
    ids: Tensor
    teacher: Tensor
    captions: Required[list[str]]


def collate(samples: Sequence[CaptionSample]) -> Batch:
    """Return a batch of rgb (B, 3, S, S) uint8, ids (B, h, w, Q), teacher (B, E) and a list of B captions.

    RGB values stay bytes, a quarter of the size of floats, until ``normalized`` converts them on the device.
    """
    batch = Batch(captions=[sample["caption"] for sample in samples])
    for name in ("rgb", "ids", "teacher"):
        if name in samples[0]:
            batch[name] = torch.stack([sample[name] for sample in samples])
    return batch


class CaptionedSamples:
    """Samples of all sources, one source after another; batch them with :func:`collate`.

    A picture that cannot be read or has no caption is logged and replaced by the next one.

    Args:
        sources: settings of the sources, either pictures or token stores.
        image_size: side of the square that a picture becomes.
        resize: way to make a picture square; see :func:`toklip_core.pictures.resized`.
        seed: seed of captions and crops.
        smallest_crop_area: smallest share of the picture's area that a random crop has (:func:`random_crop`); 1 means
            no cropping. Crops have sides from 3:4 to 4:3 and are stretched to a square. The published TokLIP has 0.9.
        window: number of rows of token stores that are shuffled together; see :meth:`order`.

    Raises:
        FileNotFoundError: files of a source are missing.
        LookupError: the library `datasets` is not installed.
        ValueError: a source has no captions, stores do not fit one another or the size, or pictures and stores are
            mixed.
    """

    def __init__(
        self,
        sources: Sequence[CaptionSource],
        *,
        image_size: int,
        resize: Resize,
        seed: int,
        smallest_crop_area: float = 1.0,
        window: int = 2**16,
    ) -> None:
        if not 0 < smallest_crop_area <= 1:
            raise ValueError(f"got smallest_crop_area {smallest_crop_area}; wanted a share above 0 and up to 1")
        stores = [source for source in sources if isinstance(source, CaptionedStore)]
        if stores and len(stores) < len(sources):
            raise ValueError(
                f"got the token store {stores[0].store} beside sources of pixels, but a batch has either ids or "
                "pixels; encode all pictures, or read all of them as pictures"
            )
        if stores and smallest_crop_area < 1:
            raise ValueError(
                f"got smallest_crop_area {smallest_crop_area}, but the pictures of {stores[0].store} were encoded "
                "whole; set it to 1, or read the pictures themselves"
            )
        if resize == "pad" and smallest_crop_area < 1:
            raise ValueError(
                f"got resize 'pad' with smallest_crop_area {smallest_crop_area}, but random crops are stretched to a "
                "square; set smallest_crop_area to 1, or resize to 'crop' or 'squash'"
            )
        self._window = window
        cache = RowCache(window)
        self._parts: list[_SourceSamples] = []
        for number, source in enumerate(sources):
            if isinstance(source, CaptionedStore):
                self._parts.append(_StoreSamples(source, image_size, resize, cache))
            elif isinstance(source, CaptionedScenes):
                self._parts.append(_Scenes(source, image_size, derived_seed(seed, number)))
            else:
                crop = _Crop(image_size, resize, smallest_crop_area)
                self._parts.append(_Pictures(_reader(source), crop, derived_seed(seed, number)))
        self._samples = Concatenation(self._parts)
        self._stores = [part.store for part in self._parts if isinstance(part, _StoreSamples)]
        refuse_mixed([(store.path, store.info) for store in self._stores], read={"augment", "teacher"})

    @property
    def stored(self) -> StoreInfo | None:
        """Info of the stores, with the tokenizer of the ids and the teacher; None if samples have pixels."""
        return self._stores[0].info if self._stores else None

    @property
    def store_checksums(self) -> list[str]:
        """Checksums of the stores, which with the settings say what the samples are."""
        return [store.checksum for store in self._stores]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, key: tuple[int, int]) -> CaptionSample:
        return self._samples[key]

    def order(self, size: int, seed: int, epoch: int) -> Tensor:
        """Return the permutation in which an epoch visits the samples.

        A row of a store is read together with its group of 1,000 rows. So first the groups are shuffled, then the rows
        within windows of ``window`` rows of consecutive groups. Each reading process keeps a window in memory: 190 MB
        with a teacher of width 1152 and 256 ids per picture. Smaller stores, and pictures, are shuffled as a whole.
        """
        if not self._stores:
            return shuffled(size, seed, epoch)
        groups = [rows for store in self._stores for rows in store.group_rows]
        return window_order(groups, self._window, seed=seed, epoch=epoch)

    def distinct_captions(self, *, most: int = 2**20) -> list[str] | None:
        """Return all distinct captions, sorted; None if there are more than ``most``, or if reading them is expensive.

        Reading them is cheap for stores and tables, where no picture is read, and reading stops after ``most``.
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


class _SourceSamples(Samples[CaptionSample], Protocol):
    def all_captions(self) -> Iterator[str] | None: ...


class _Scenes:
    def __init__(self, source: CaptionedScenes, size: int, seed: int) -> None:
        self._source, self._size, self._seed = source, size, seed

    def __len__(self) -> int:
        return self._source.count

    def __getitem__(self, key: tuple[int, int]) -> CaptionSample:
        epoch, index = key
        number = epoch * len(self) + index
        source = self._source
        drawn = scene(
            number, seed=source.seed, size=self._size, objects=source.objects, background=source.background
        )
        caption = random.Random(derived_seed(self._seed, *key)).choice(drawn.captions)
        return CaptionSample(rgb=picture_to_rgb(drawn.rgb), caption=caption)

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
        return cropped(image, box).resize((self.size, self.size), Image.Resampling.BICUBIC)


class _Pictures:
    def __init__(self, reader: CaptionReader, crop: _Crop, seed: int) -> None:
        self._reader, self._crop, self._seed = reader, crop, seed

    def __len__(self) -> int:
        return len(self._reader)

    def __getitem__(self, key: tuple[int, int]) -> CaptionSample:
        reader = self._reader
        image, captions = first_usable(
            reader.__getitem__, key[1], len(reader), name=reader.place, what="captioned pictures"
        )
        draw = random.Random(derived_seed(self._seed, *key))
        caption = draw.choice(captions)
        return CaptionSample(rgb=picture_to_rgb(self._crop(image, draw)), caption=caption)

    def all_captions(self) -> Iterator[str] | None:
        return self._reader.all_captions()


class _StoreSamples:
    """Rows of a token store with their captions."""

    def __init__(self, source: CaptionedStore, size: int, resize: Resize, cache: RowCache) -> None:
        self.store = TokenStore(source.store, cached_rows=cache, features=("teacher",))
        refuse_other_squares(self.store.info, source.store, image_size=size, resize=resize)
        self.store.refuse_missing_captions()

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, key: tuple[int, int]) -> CaptionSample:
        row = self.store[key[1]]
        assert row.caption is not None
        sample = CaptionSample(ids=row.ids, caption=row.caption)
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
