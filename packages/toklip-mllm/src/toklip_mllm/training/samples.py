"""What a language model that sees is trained on, as :func:`toklip_core.training.fit` takes it.

A sample is a function of (seed, epoch, index): workers, processes and resumed runs see the same.

    sources -open_sources-> conversations -TalkSamples-> tokens, labels, and pixels or ids -collate-> batch

From a token store no picture is read, and the VQ tokenizer has nothing to do. With the encoder's tokens in it the
encoder has nothing to do either; they stay in the store, and conversations are visited in windows of its groups.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property, partial
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from toklip_core.training import Concatenation, UnusableSampleError, derived_seed, first_usable, shuffled
from torch import Tensor

from toklip_mllm.model import TokLIPProcessor
from toklip_mllm.training.conversations import Example, collate as collate_examples, label_conversation
from toklip_mllm.training.sources import TOKEN_MEMORY, Talk, TalkReader

#: Batches that are grouped by length together: more of them give less padding, and an order that is less random.
_BATCHES = 50


class TalkSample(NamedTuple):
    """Tokens, with ids of 0 where the pictures are still levels."""

    example: Example
    #: (P, 3, S, S), uint8; None where the example has its ids.
    levels: Tensor | None
    #: (P, N, D), float16, if they are stored.
    tokens: Tensor | None = None


class TalkSamples:
    """All sources one after another, as :class:`toklip_core.training.Samples`; :meth:`collate` goes with it.

    A conversation is cut after ``max_length`` tokens. One of which that leaves half a picture, or nothing that the
    assistant says, or whose picture cannot be read, is logged, and the next takes its place.

    Args:
        sources: of :func:`toklip_mllm.training.open_sources`.
        processor: of the model.
        grid: h and w of a picture's ids.
        max_length: tokens of a conversation, those of its pictures included.
        batch_size: of a step, if conversations of one length are to come together; None: they are not.
        window: bytes of stored tokens whose conversations are shuffled together. Half of what a source keeps in
            memory: the first batches of a window may have the last conversations of the window before.
    """

    def __init__(
        self,
        sources: Sequence[TalkReader],
        processor: TokLIPProcessor,
        grid: tuple[int, int],
        *,
        max_length: int,
        batch_size: int | None = None,
        window: int = TOKEN_MEMORY // 2,
    ) -> None:
        self._sources, self._processor, self._grid = list(sources), processor, grid
        self._max_length, self._batch_size, self._window = max_length, batch_size, window
        self._talks = Concatenation(self._sources)

    @cached_property
    def collate(self) -> Any:  # noqa: ANN401 - a function that can be pickled
        """Samples -> batch, see :func:`collate`."""
        return partial(collate, pad_id=int(self._processor.tokenizer.pad_token_id or 0))

    def __len__(self) -> int:
        return len(self._talks)

    def try_templates(self) -> None:
        """Render conversations of each kind, before hours of training come to one; ValueError that names it."""
        for source in self._sources:
            for talk in source.of_each_kind():
                ids = torch.zeros(len(talk.pictures), *self._grid, dtype=torch.int64)
                label_conversation(talk, self._processor, image_ids=ids)

    def __getitem__(self, key: tuple[int, int]) -> TalkSample:
        epoch, index = key
        number, place = self._talks.place(index)
        source = self._sources[number]
        return first_usable(
            lambda place: self._sample(source[epoch, place]),
            place,
            len(source),
            name=source.name,
            what="conversations",
        )

    def order(self, size: int, seed: int, epoch: int) -> Tensor:
        """Return the permutation in which an epoch visits the samples: the argument ``order`` of ``fit``.

        With a batch size, conversations of about the same length share a step, those without a picture apart: samples
        are shuffled, sorted by length within windows of 50 batches, and the batches of a window shuffled. A batch that
        began in the epoch before is filled first.

        Where tokens are read from a store, a conversation costs the reading of its first picture's group. So groups
        are shuffled, then the conversations of each ``window``; those without a picture come anywhere in the epoch.
        Further pictures of a conversation may lie in groups of other windows, and cost the reading of those.
        """
        shuffle, ends = self._shuffled(size, seed, epoch)
        batch = self._batch_size
        if batch is None or len({*self._lengths.tolist()}) == 1:
            return shuffle
        draw = torch.Generator().manual_seed(derived_seed(seed, epoch, batch))
        head = -epoch * size % batch
        parts = [shuffle[:head]]
        # Whole batches up to the end of a window: what is over comes with the next.
        bounds = sorted({head, size, *(end - (end - head) % batch for end in ends if end > head)})
        for first, last in pairwise(bounds):
            for window in torch.split(shuffle[first:last], _BATCHES * batch):
                ordered = window[self._lengths[window].argsort(stable=True)]
                whole = len(ordered) // batch
                batches = ordered[: whole * batch].reshape(whole, batch)
                parts += [batches[torch.randperm(whole, generator=draw)].flatten(), ordered[whole * batch :]]
        return torch.cat(parts)

    @cached_property
    def layout(self) -> str | None:
        """A checksum of where stored tokens are read, on which the order depends; None without them."""
        if self._groups is None:
            return None
        return hashlib.sha256(b"".join(part.numpy().tobytes() for part in self._groups)).hexdigest()

    def _shuffled(self, size: int, seed: int, epoch: int) -> tuple[Tensor, list[int]]:
        """A permutation, and where in it windows of groups end, but for the last."""
        if self._groups is None:
            return shuffled(size, seed, epoch), []
        of_talks, nbytes = self._groups
        draw = torch.Generator().manual_seed(derived_seed(seed, epoch, -1))
        groups = torch.randperm(len(nbytes), generator=draw)
        before = torch.empty_like(nbytes)
        before[groups] = nbytes[groups].cumsum(0) - nbytes[groups]
        mixed = shuffled(size, seed, epoch)  # and it stays so where all is one window
        places = (of_talks[mixed] >= 0).nonzero()[:, 0]
        windows = before[of_talks[mixed[places]]] // self._window
        in_order = windows.argsort(stable=True)
        visited = mixed.clone()
        visited[places] = mixed[places[in_order]]
        last = windows[in_order].diff().nonzero()[:, 0]
        return visited, (places[last] + 1).tolist()

    @cached_property
    def _groups(self) -> tuple[Tensor, Tensor] | None:
        """The group of each conversation's tokens, of all stores one after another, and the bytes of the groups."""
        found = [source.groups for source in self._sources]
        stores = {groups.store: groups.nbytes for groups in found if groups is not None}
        if not stores:
            return None
        firsts = dict(zip(stores, accumulate(map(len, stores.values()), initial=0), strict=False))
        of_talks = [
            np.where(groups.of_talks < 0, -1, groups.of_talks + firsts[groups.store])
            for groups in found
            if groups is not None
        ]
        numbers = torch.from_numpy(np.concatenate(of_talks))
        nbytes = torch.from_numpy(np.concatenate([*stores.values()]))
        used = torch.zeros(len(nbytes), dtype=torch.bool)
        used[numbers[numbers >= 0]] = True
        return numbers, nbytes * used

    @cached_property
    def _lengths(self) -> Tensor:
        tokens = self._grid[0] * self._grid[1]
        return torch.from_numpy(np.concatenate([source.lengths(tokens) for source in self._sources]))

    def _sample(self, talk: Talk) -> TalkSample:
        """The tokens of a conversation; UnusableSampleError if nothing can be learnt from them."""
        ids = talk.ids
        if ids is None:
            ids = torch.zeros(len(talk.conversation.pictures), *self._grid, dtype=torch.int64)
        example = label_conversation(talk.conversation, self._processor, image_ids=ids)
        cut = Example(example.input_ids[: self._max_length], example.labels[: self._max_length], ids)
        image = self._processor.image_token_id
        if (cut.input_ids == image).sum() < (example.input_ids == image).sum():
            raise UnusableSampleError(f"{self._max_length} tokens end within its pictures")
        if (cut.labels[1:] < 0).all():
            raise UnusableSampleError(f"{self._max_length} tokens have nothing that the assistant says")
        return TalkSample(cut, talk.levels, talk.tokens)


def collate(samples: Sequence[TalkSample], *, pad_id: int) -> dict[str, Tensor]:
    """Return a batch: input_ids, labels, attention_mask (B, L), and pixels (P, 3, S, S) uint8 or image_ids (P, h, w).

    Beside ids there are image_tokens (P, N, D), float16, if they are stored. Rows are padded on the right. Pixels stay
    bytes, so that a worker sends a quarter of what floats would be. Without pictures there is none of these.
    """
    batch = collate_examples([sample.example for sample in samples], pad_id=pad_id)
    levels = [sample.levels for sample in samples if sample.levels is not None]
    if levels:
        batch.pop("image_ids", None)
        batch["pixels"] = torch.cat(levels)
    tokens = [sample.tokens for sample in samples if sample.tokens is not None]
    if tokens:
        batch["image_tokens"] = torch.cat(tokens)
    return batch
