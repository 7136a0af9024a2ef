"""Search for the pictures that match a text best, in files or in a token store, as ``toklip search`` does.

The match of a picture and a text is the cosine of their vectors. A store only needs ids: the model computes the vectors
from them, or uses stored ones if they are its own.

Shape letters: B batch, E joint space.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from toklip_core.config import Compute, progress_bar
from toklip_core.evaluation.classes import refuse_duplicates
from toklip_core.evaluation.matcher import (
    IdMatcher,
    Matcher,
    load_matcher,
    picture_features,
    refuse_cut_texts,
    text_features,
)
from toklip_core.evaluation.report import software
from toklip_core.model import TokLIP
from toklip_core.pictures import (
    PANEL_SIDE,
    LazyPicture,
    Resize,
    find_pictures,
    list_pictures,
    picture_sheet,
    resized,
    to_picture,
)
from toklip_core.store import TokenStore, part_paths
from toklip_core.weights import refuse_not_finite, rows_named, weights_checksum


class Hit(NamedTuple):
    """A picture of the result."""

    #: Picture, named by its file, its name in a tar, or its key in a store, from whose ids it is decoded.
    picture: LazyPicture
    cosine: float


@dataclass(frozen=True, kw_only=True)
class Search:
    """Result of a search."""

    text: str
    #: Pictures, best first; equal ones in the order of the inputs.
    hits: tuple[Hit, ...]
    #: Number of pictures that were compared.
    searched: int
    #: Way in which the model resizes pictures.
    resize: Resize
    protocol: dict[str, str]
    #: Pictures that cannot be read, with the reason.
    unreadable: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON data."""
        return {
            "text": self.text,
            "pictures": [{"picture": hit.picture.name, "cosine": hit.cosine} for hit in self.hits],
            "searched": self.searched,
            "protocol": self.protocol,
            "unreadable": list(self.unreadable),
        }

    def as_text(self) -> str:
        """Return the result as text: for each picture a line with cosine and name."""
        return "\n".join(f"{hit.cosine:7.4f}  {hit.picture.name}" for hit in self.hits)


def search_pictures(
    name: Path | str,
    where: Sequence[Path | str],
    text: str,
    *,
    top: int = 5,
    compute: Compute = Compute(),
) -> Search:
    """Return the pictures whose vectors have the largest cosine with that of a text.

    Args:
        name: name or folder of the model; for a store, one that reads the ids of the store's tokenizer, as a TokLIP
            does.
        where: files, folders, globs, tars, scenes (see :func:`toklip_core.pictures.find_pictures`), or one token store.
        text: text, best in the style of the captions that the model was trained on.
        top: number of pictures.
        compute: device, and number of pictures at a time.

    Raises:
        FileNotFoundError: there is no picture, or a file of the model is not there.
        LookupError: there is no such model, or it has no text tower.
        ValueError: the text is empty or longer than the model reads, no picture can be read, or the store's ids are not
            the model's.
    """
    refuse_duplicates([text], "text")
    pictures = pictures_to_search(where, compute)
    model, protocol = load_matcher(name, compute)
    return PictureIndex(model, pictures, protocol=protocol, compute=compute).search(text, top=top)


def pictures_to_search(where: Sequence[Path | str], compute: Compute = Compute()) -> list[LazyPicture] | TokenStore:
    """Return the pictures of ``where``, unread, or the token store that it names; see :func:`search_pictures`.

    Raises:
        FileNotFoundError: there is no picture.
        ValueError: a token store is named beside other pictures.
    """
    stores = [path for path in map(Path, where) if part_paths(path)]
    if stores and len(where) > 1:
        raise ValueError(f"got the token store {stores[0]} beside other pictures; search one after the other")
    if stores:
        return TokenStore(stores[0], features=["pooled"])
    return list_pictures(find_pictures(where, max_pixels=compute.max_pixels), progress=compute.progress)


class PictureIndex:
    """Pictures with their vectors by a model, for searches by text.

    Args:
        model: model from :func:`toklip_core.evaluation.load_matcher`.
        pictures: result of :func:`pictures_to_search`.
        protocol: what ``load_matcher`` says of the model.
        compute: number of pictures at a time, and whether a bar is shown.
        kept: whether the first search keeps the vectors in memory for the next ones; by default each search computes
            them again, in memory that does not grow with the number of pictures.

    Raises:
        ValueError: the ids of the store are not the model's.
    """

    def __init__(
        self,
        model: Matcher,
        pictures: Sequence[LazyPicture] | TokenStore,
        *,
        protocol: dict[str, str],
        compute: Compute = Compute(),
        kept: bool = False,
    ) -> None:
        self._model, self._pictures, self._protocol = model, pictures, protocol
        self._compute, self._kept = compute, kept
        self._reader = _reader_of(pictures, model, protocol["model"]) if isinstance(pictures, TokenStore) else None
        self._batches: list[tuple[Sequence[int], Tensor]] = []
        self._unreadable: list[str] = []

    def __len__(self) -> int:
        return len(self._pictures)

    def search(self, text: str, *, top: int = 5) -> Search:
        """Return the pictures whose vectors have the largest cosine with that of a text.

        Raises:
            LookupError: the model has no text tower.
            ValueError: the text is empty or longer than the model reads, or no picture can be read.
        """
        (text,) = refuse_duplicates([text], "text")
        refuse_cut_texts(self._model, [text])
        wanted = text_features(self._model, [text])[0]
        best = _best(self._vectors(), wanted, top)
        # Read in the order of the store, where a row is read with its group.
        found = {place: self._picture(place) for place in sorted(place for _, place in best)}
        return Search(
            text=text,
            hits=tuple(Hit(found[place], cosine) for cosine, place in best),
            searched=len(self) - len(self._unreadable),
            resize=self._model.config.resize,
            protocol=self._protocol | {"software": software()},
            unreadable=tuple(self._unreadable),
        )

    def _vectors(self) -> Iterable[tuple[Sequence[int], Tensor]]:
        """Yield the places and unit vectors (B, E) of each batch."""
        if self._batches:
            return self._batches
        self._unreadable.clear()
        if self._kept:
            self._batches = list(self._computed())
            return self._batches
        return self._computed()

    def _computed(self) -> Iterator[tuple[Sequence[int], Tensor]]:
        if isinstance(self._pictures, TokenStore):
            assert self._reader is not None
            return _store_features(self._reader, self._pictures, self._compute)
        return picture_features(self._model, self._pictures, self._unreadable, self._compute)

    def _picture(self, place: int) -> LazyPicture:
        if isinstance(self._pictures, TokenStore):
            return _stored_picture(self._model, self._pictures, place)
        return self._pictures[place]


def draw_search(search: Search) -> Image.Image:
    """Return a contact sheet of the pictures, each below its rank, cosine and name."""
    titles = [f"{place}. {hit.cosine:.3f}  {hit.picture.name}" for place, hit in enumerate(search.hits, start=1)]
    return picture_sheet(titles, [resized(hit.picture.read(), PANEL_SIDE, search.resize) for hit in search.hits])


def _best(batches: Iterable[tuple[Sequence[int], Tensor]], wanted: Tensor, top: int) -> list[tuple[float, int]]:
    """Return the cosine and place of the ``top`` vectors nearest to ``wanted`` (E,); equal ones in order of place.

    Args:
        batches: places and unit vectors (B, E) of each batch.
        wanted: unit vector.
        top: number of results.
    """
    found = (
        (-cosine, place)
        for places, features in batches
        for cosine, place in zip((features @ wanted).tolist(), places, strict=True)
    )
    return [(-distance, place) for distance, place in heapq.nsmallest(top, found)]


def _reader_of(tokens: TokenStore, model: Matcher, name: Path | str) -> IdMatcher:
    """Return the model if it reads the ids of a store, else raise ValueError."""
    info = tokens.info
    if not isinstance(model, IdMatcher):
        raise ValueError(
            f"{tokens.path} holds ids, and {name} is a {type(model).__name__}, which reads none; name a TokLIP, or the "
            "pictures themselves"
        )
    model.tokenizer.refuse_other_ids(info.tokenizer, f"the token store {tokens.path}")
    if info.image_size != model.config.image_size:
        raise ValueError(
            f"{tokens.path} holds ids of {info.image_size} px, and {name} reads those of {model.config.image_size} px; "
            f"name a model that reads the former, or encode the pictures with --model {name}"
        )
    return model


@torch.no_grad()
def _store_features(model: IdMatcher, tokens: TokenStore, compute: Compute) -> Iterator[tuple[list[int], Tensor]]:
    """Yield the row numbers and unit vectors (B, E) of a batch."""
    pooled = tokens.info.pooled
    stored = (
        pooled is not None
        and isinstance(model, TokLIP)  # no store has vectors of other models
        and pooled.weights_checksum == weights_checksum(model.encoder)
    )
    device = model.logit_scale.device
    rows = enumerate(tokens)
    with progress_bar(len(tokens), shown=compute.progress) as bar:
        while batch := list(islice(rows, compute.batch_size)):
            with rows_named([row.key for _, row in batch]):
                if stored:
                    features = torch.stack([cast(Tensor, row.pooled) for _, row in batch]).to(device)
                else:
                    features = model.encode_ids(torch.stack([row.ids for _, row in batch]).to(device)).pooled
                features = F.normalize(features.float(), dim=-1)
                refuse_not_finite(features, "the feature")
            bar.update(len(batch))
            yield [place for place, _ in batch], features


def _stored_picture(model: Matcher, tokens: TokenStore, place: int) -> LazyPicture:
    row = tokens[place]
    return LazyPicture(row.key, partial(_decoded, cast(IdMatcher, model), row.ids))


@torch.no_grad()
def _decoded(model: IdMatcher, ids: Tensor) -> Image.Image:
    return to_picture(model.tokenizer.decode_clamped(ids[None])[0])
