"""Pictures and texts in one space, by any model that has both: features, ranks, and the words around the figures.

A :class:`Matcher` is a TokLIP, a CLIP, or another model with the same few members: a student and its teacher are
measured by the same code. An :class:`IdMatcher` also reads the ids of its VQ tokenizer, as a TokLIP does.

Shape letters: B batch, S picture side, T texts, E joint space, Q queries, C candidates.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from toklip_core.config import Compute, progress_bar, refuse_missing_device
from toklip_core.files import one_line, why_unreadable
from toklip_core.model import Encoding, TextTokenizer, TextTower, load_model
from toklip_core.pictures import READING_ERRORS, LazyPicture, Resize, to_pixels
from toklip_core.plugins import registry
from toklip_core.scenes.inputs import SCHEME
from toklip_core.tokenizer import Tokenizer
from toklip_core.weights import refuse_not_finite, rows_named, weights_checksum

#: How candidates of equal score are counted, for protocols.
TIES = "candidates of equal score count as in a random order, on the average"
_TEXTS = 256

#: Unknown words that a warning names.
_NAMED = 10

#: Threads that read pictures, and pictures that are read before they are needed.
_READERS, _AHEAD = 4, 16
_log = logging.getLogger(__name__)


class Preprocessing(Protocol):
    """How a picture becomes what a model takes."""

    @property
    def image_size(self) -> int:
        """Side S of the square that the model takes, in pixels."""

    @property
    def resize(self) -> Resize:
        """How a picture is made that square; see :func:`toklip_core.pictures.resized`."""


class Matcher(Protocol):
    """A model of pictures and texts."""

    @property
    def config(self) -> Preprocessing:
        """Picture size and resize mode that the model expects."""

    @property
    def logit_scale(self) -> Tensor:
        """The logarithm of what cosines are multiplied by, (); it lies on the model's device."""

    def image_features(self, pixels: Tensor) -> Tensor:
        """Return unit features (B, E), float32, of pixels (B, 3, S, S) in [-1, 1]."""

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Return unit features (T, E), float32."""


@runtime_checkable
class IdMatcher(Matcher, Protocol):
    """A model of pictures and texts whose vectors of pictures are made of their ids: a TokLIP, or UniTok."""

    @property
    def tokenizer(self) -> Tokenizer:
        """VQ tokenizer, which makes the ids."""

    def encode_ids(self, ids: Tensor) -> Encoding:
        """Return the encoding of ids (B, h, w, Q), such as those of a token store."""


def load_matcher(
    name: Path | str, compute: Compute = Compute(), *, checksums: bool = False
) -> tuple[Matcher, dict[str, str]]:
    """Return a model on its device, and what a protocol says of it.

    Args:
        name: name of a plugin's model that compares, or NAME=PATH with the path of its weights, or what
            :func:`toklip_core.model.load_model` takes.
        compute: says on which device, and in which dtype.
        checksums: whether the protocol has the checksums of the weights, as the report of an evaluation does. They
            take about as long as loading the model: nobody who asks a question waits for them.

    Raises:
        ValueError: there is no such device, or the weights do not fit.
        LookupError, FileNotFoundError: as ``load_model``.
    """
    refuse_missing_device(compute.device)
    model: Any = _loaded(name).eval()
    protocol = {"model": str(name)}
    if checksums:  # before the dtype changes, so that they are those of the file
        protocol["weights"] = f"sha256 {weights_checksum(model)}"
    if isinstance(model, IdMatcher):
        of_tokenizer = f", sha256 {model.tokenizer.checksum}" if checksums else ""
        protocol["tokenizer"] = f"{model.tokenizer.name}{of_tokenizer}"
    size = model.config.image_size
    protocol["computed"] = f"in {compute.dtype} on {compute.device}"
    protocol["size"] = f"{size} x {size}, resize {model.config.resize}"
    return model.to(compute.device, compute.torch_dtype), protocol


def _loaded(name: Path | str) -> nn.Module:
    named, _, path = str(name).partition("=")
    spec = registry().models.get(named)
    if spec is None or spec.match is None:
        return load_model(name)
    return spec.match(Path(path) if path else None)


def refuse_unreadable(pictures: Iterable[LazyPicture]) -> None:
    """Read held-out pictures, each of them once, before a run begins that is evaluated on them.

    Raises:
        ValueError: some cannot be read; it says how many, and names the first.
    """
    distinct = {picture.name: picture for picture in pictures}
    with ThreadPoolExecutor(_READERS) as readers:
        problems = [problem for problem in readers.map(_problem, distinct.values()) if problem]
    if problems:
        raise ValueError(
            f"{len(problems)} of {len(distinct)} held-out pictures cannot be read, the first is {problems[0]}; fix "
            "them, or leave them out"
        )


def _problem(picture: LazyPicture) -> str | None:
    try:
        picture.read()
    except READING_ERRORS as error:
        return f"{picture.name}: {why_unreadable(error)}"
    return None


def warn_of_unreadable(unreadable: Sequence[str]) -> None:
    """Log how many held-out pictures could not be read during a run, "name: reason" each, and the first."""
    if unreadable:
        words = "%d held-out pictures cannot be read and are left out of the figures; the first is %s"
        _log.warning(words, len(unreadable), unreadable[0])


@torch.no_grad()
def picture_features(
    model: Matcher,
    pictures: Sequence[LazyPicture],
    unreadable: list[str],
    compute: Compute = Compute(),
    sizes: dict[str, tuple[int, int]] | None = None,
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield the places in ``pictures`` of a batch, and their unit features (B, E), float32, on the model's device.

    Args:
        model: its config says how a picture is resized.
        pictures: read by four threads, at most 16 ahead of the one that is needed.
        unreadable: those that cannot be read are added here, "name: reason".
        compute: says how many pictures are taken at a time, which changes no feature beyond the rounding of floats, and
            whether a bar is shown.
        sizes: width and height of each picture that is read are added here, under its name.

    Raises:
        ValueError: no picture can be read, or a feature is not finite.
    """
    places: list[int] = []
    pixels: list[Tensor] = []

    def batch() -> tuple[list[int], Tensor]:
        with rows_named([pictures[place].name for place in places]):
            features = model.image_features(torch.stack(pixels).to(model.logit_scale.device))
            refuse_not_finite(features, "the model's feature")  # a Matcher may be anybody's
        return places, features

    seen = 0
    squares = closing(_squares(pictures, model.config, {} if sizes is None else sizes))
    with progress_bar(len(pictures), shown=compute.progress) as bar, squares as found:
        for place, square in enumerate(found):
            bar.update()
            if isinstance(square, Exception):
                unreadable.append(f"{pictures[place].name}: {why_unreadable(square)}")
                continue
            pixels.append(square)
            places.append(place)
            seen += 1
            if len(places) == compute.batch_size:
                yield batch()
                places, pixels = [], []
        if places:
            yield batch()
    if not seen:
        first = f"; the first is {unreadable[0]}" if unreadable else ""
        raise ValueError(f"none of {len(pictures)} pictures can be read{first}")


def _squares(
    pictures: Sequence[LazyPicture], how: Preprocessing, sizes: dict[str, tuple[int, int]]
) -> Generator[Tensor | Exception]:
    """Yield the pixels (3, S, S) of each picture in order, or why it cannot be read; threads read some ahead."""

    def square(picture: LazyPicture) -> Tensor | Exception:
        try:
            image = picture.read()
            sizes[picture.name] = image.size
            return to_pixels(image, how.image_size, how.resize)
        except READING_ERRORS as error:
            return error.with_traceback(None)  # whose frames would keep what was read of the picture

    waiting: deque[Future[Tensor | Exception]] = deque()
    readers = ThreadPoolExecutor(_READERS)
    try:
        for picture in pictures:
            waiting.append(readers.submit(square, picture))
            if len(waiting) > _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        readers.shutdown(cancel_futures=True)  # the caller may stop in the middle


def text_features(model: Matcher, texts: Sequence[str], *, progress: bool = False) -> Tensor:
    """Return unit features (T, E), float32, of texts; give each text once.

    Raises:
        LookupError, FileNotFoundError: the model has no text tower, or its tokenizer is missing.
        ValueError: there is no text, or a feature is not finite.
    """
    if not texts:
        raise ValueError("got no text; name at least one")
    if isinstance(tower := getattr(model, "text", None), TextTower):
        warn_of_unknown_words(tower, texts)
    found = []
    for start in tqdm(range(0, len(texts), _TEXTS), unit_scale=_TEXTS, unit=" texts", disable=_hidden(texts, progress)):
        chunk = texts[start : start + _TEXTS]
        with rows_named(chunk):
            found.append(model.text_features(chunk))
            refuse_not_finite(found[-1], "the model's feature", "text")
    return torch.cat(found)


def refuse_cut_texts(model: Matcher, texts: Sequence[str]) -> None:
    """Raise ValueError, which names the text, if the model would read only the beginning of one of some texts."""
    if (tokenizer := _tokenizer_of(model)) and (cut := tokenizer.cut_texts(texts)):
        (length,) = tokenizer.lengths(cut[:1])
        raise ValueError(
            f"the text {one_line(cut[0], longest=80)!r} has {length} tokens, and the model reads "
            f"{tokenizer.config.context_length}: it would be cut; shorten it"
        )


def cut_protocol(model: Matcher, texts: Sequence[str]) -> dict[str, str | int]:
    """Return what a protocol says of texts that are cut: {"cut": ...}; empty if none is."""
    if (tokenizer := _tokenizer_of(model)) and (cut := tokenizer.cut_texts(texts)):
        limit = tokenizer.config.context_length
        return {"cut": f"{len(cut)} of {len(texts)} texts, after the {limit} tokens that the model reads"}
    return {}


def warn_of_unknown_words(tower: TextTower, texts: Sequence[str]) -> None:
    """Name, in the log, the words that the tower's tokenizer has no id for."""
    if tower.tokenizer is not None and (unknown := tower.tokenizer.unknown_words(texts)):
        more = f", and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
        named = ", ".join(unknown[:_NAMED]) + more
        _log.warning("unknown to the model, which reads every unknown word alike: %s", named)


def warn_of_other_pictures(
    model: str, pictures: Iterable[tuple[Path | str, tuple[int, int]]], *, side: int
) -> None:
    """Warn that a model of the packages knows drawn scenes alone, if a picture is larger than they are.

    Args:
        model: name of the model.
        pictures: inputs, with width and height; ``scenes:...`` may have any size.
        side: side of the scenes that the model was trained on.
    """
    if any(max(size) > side and not str(name).startswith(SCHEME) for name, size in pictures):
        _log.warning(
            "%s knows drawn scenes of coloured shapes and nothing else; `toklip models` lists models of photographs",
            model,
        )


def hit_chances(scores: Tensor, own: Tensor, ranks: Sequence[int]) -> Tensor:
    """Return, for each query and rank k, the chance that one of its own candidates is among the first k: (Q, K).

    It is 1 or 0 unless scores are equal. Candidates of equal score are taken to be in random order: a model that scores
    all alike reaches exactly what guessing does, where a stable sort would let it be always right or always wrong.

    Args:
        scores: (Q, C).
        own: (Q, C), bool; at least one in each row.
        ranks: K of them.
    """
    best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
    ahead = (scores > best).sum(1)
    tied = ((scores == best) & ~own).sum(1).double()
    mine = ((scores == best) & own).sum(1).double()
    chances = []
    for rank in ranks:
        # The places that are left, one after another: each may go to one of the others that are tied.
        left = rank - ahead
        missed = torch.ones_like(tied)
        for taken in range(rank):
            another = (tied - taken).clamp(min=0) / (tied + mine - taken).clamp(min=1)
            missed = torch.where(taken < left, missed * another, missed)
        chances.append(1 - missed)
    return torch.stack(chances, dim=1)


def _tokenizer_of(model: Matcher) -> TextTokenizer | None:
    tower = getattr(model, "text", None)
    return tower.tokenizer if isinstance(tower, TextTower) else None


def _hidden(texts: Sequence[str], progress: bool) -> bool | None:
    return None if progress and len(texts) > _TEXTS else True
