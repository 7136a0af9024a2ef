"""Training data of a language model that reads pictures, for :func:`toklip_core.training.fit`.

A sample depends only on (seed, epoch, index), so workers, processes and resumed runs get the same.

    sources -open_sources-> conversations -ConversationSamples-> tokens, labels, and pixels or ids -collate-> batch

With a token store no picture is read, and the VQ tokenizer is not used. If the store has the encoder's tokens, the
encoder is not used either: tokens are read from the store, and conversations are visited in windows of its groups.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cached_property, partial
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from toklip_core.training import Concatenation, UnusableSampleError, derived_seed, first_usable, shuffled
from torch import Tensor

from toklip_mllm.model import IGNORED, TokLIPProcessor
from toklip_mllm.training.conversations import (
    Example,
    collate as collate_examples,
    join_branches,
    label_conversation,
)
from toklip_mllm.training.sources import TOKEN_MEMORY, ConversationReader, LoadedConversation

#: Number of batches that are sorted by length together. More give less padding, and a less random order.
_BATCHES = 50


class ConversationSample(NamedTuple):
    """Example with its pictures as ids, or as RGB values; then its ids are empty, (P, 0, 0, 0)."""

    example: Example
    #: (P, 3, S, S), uint8; None if the example has ids.
    rgb: Tensor | None
    #: (P, N, D), float16, if tokens are stored.
    tokens: Tensor | None = None


class ConversationSamples:
    """Samples of all sources, one source after another, for ``fit`` with :meth:`collate`.

    Some pictures that the assistant draws come without their prompt, for guidance: the begin token and the picture
    alone. A conversation is cut after ``max_length`` tokens. It is logged and replaced by the next one if that cuts a
    picture or leaves nothing to learn, or if a picture cannot be read.

    Args:
        sources: readers from :func:`toklip_mllm.training.open_sources`.
        processor: processor of the model.
        max_length: maximum number of tokens of a conversation, including those of pictures.
        batch_size: batch size of a step, to group conversations by length; None: no grouping.
        prompt_dropout: share of conversations whose first drawn picture comes without its prompt.
        seed: seed of the dropped prompts.
        window: bytes of stored tokens whose conversations are shuffled together. The default is half the memory of a
            source, because the first batches of a window may have the last conversations of the window before.
    """

    def __init__(
        self,
        sources: Sequence[ConversationReader],
        processor: TokLIPProcessor,
        *,
        max_length: int,
        batch_size: int | None = None,
        prompt_dropout: float = 0.0,
        seed: int = 0,
        window: int = TOKEN_MEMORY // 2,
    ) -> None:
        self._sources, self._processor = list(sources), processor
        self._max_length, self._batch_size, self._window = max_length, batch_size, window
        self._dropout, self._seed = prompt_dropout, seed
        begin = processor.begin_token
        self._begin_id = None if begin is None else processor.tokenizer.convert_tokens_to_ids(begin)
        self._conversations = Concatenation(self._sources)

    @cached_property
    def collate(self) -> Any:  # noqa: ANN401 - a function that can be pickled
        """Function that makes a batch of samples, see :func:`collate`."""
        return partial(collate, pad_id=int(self._processor.tokenizer.pad_token_id or 0))

    def __len__(self) -> int:
        return len(self._conversations)

    def try_templates(self) -> None:
        """Render one conversation of each kind before training; ValueError that names the one that fails."""
        for source in self._sources:
            for conversation in source.of_each_kind():
                label_conversation(conversation, self._processor, image_ids=_unread(len(conversation.pictures)))

    def __getitem__(self, key: tuple[int, int]) -> ConversationSample:
        epoch, index = key
        number, place = self._conversations.place(index)
        source = self._sources[number]
        # A function of the sample and not of the step, so that two processes drop the same prompts as one.
        drop = random.Random(derived_seed(self._seed, epoch, index, -1)).random() < self._dropout
        return first_usable(
            lambda place: self._sample(source[epoch, place], drop=drop),
            place,
            len(source),
            name=source.name,
            what="conversations",
        )

    def order(self, size: int, seed: int, epoch: int) -> Tensor:
        """Return the permutation in which an epoch visits the samples: the argument ``order`` of ``fit``.

        With a batch size, a step has conversations of about the same length, and those without a picture are separate:
        samples are shuffled, sorted by length within windows of 50 batches, and the batches of a window are shuffled.
        A batch that began in the epoch before is filled first.

        If tokens are read from a store, each conversation reads the group of its first picture. So groups are shuffled,
        and then the conversations of each ``window``; those without a picture may come anywhere in the epoch. Further
        pictures of a conversation may lie in other windows' groups, which are then read, too.
        """
        shuffle, ends = self._shuffled(size, seed, epoch)
        batch = self._batch_size
        if batch is None or len({*self._lengths.tolist()}) == 1:
            return shuffle
        draw = torch.Generator().manual_seed(derived_seed(seed, epoch, batch))
        head = -epoch * size % batch
        parts = [shuffle[:head]]
        # A window ends with a whole batch; the remaining conversations come with the next window.
        bounds = sorted({head, size, *(end - (end - head) % batch for end in ends if end > head)})
        for first, last in pairwise(bounds):
            for window in torch.split(shuffle[first:last], _BATCHES * batch):
                ordered = window[self._lengths[window].argsort(stable=True)]
                whole = len(ordered) // batch
                batches = ordered[: whole * batch].reshape(whole, batch)
                parts += [batches[torch.randperm(whole, generator=draw)].flatten(), ordered[whole * batch :]]
        return torch.cat(parts)

    def _shuffled(self, size: int, seed: int, epoch: int) -> tuple[Tensor, list[int]]:
        """Return a permutation (size,), and the ends of its windows of groups, except the last."""
        if self._groups is None:
            return shuffled(size, seed, epoch), []
        of_conversations, nbytes = self._groups
        draw = torch.Generator().manual_seed(derived_seed(seed, epoch, -1))
        groups = torch.randperm(len(nbytes), generator=draw)
        before = torch.empty_like(nbytes)
        before[groups] = nbytes[groups].cumsum(0) - nbytes[groups]
        mixed = shuffled(size, seed, epoch)  # one window needs no other order
        places = (of_conversations[mixed] >= 0).nonzero()[:, 0]
        windows = before[of_conversations[mixed[places]]] // self._window
        in_order = windows.argsort(stable=True)
        visited = mixed.clone()
        visited[places] = mixed[places[in_order]]
        last = windows[in_order].diff().nonzero()[:, 0]
        return visited, (places[last] + 1).tolist()

    @cached_property
    def _groups(self) -> tuple[Tensor, Tensor] | None:
        """Return the group of each conversation, counted over all stores, and the bytes of each group."""
        found = [source.groups for source in self._sources]
        stores = {groups.store: groups.nbytes for groups in found if groups is not None}
        if not stores:
            return None
        firsts = dict(zip(stores, accumulate(map(len, stores.values()), initial=0), strict=False))
        of_conversations = [
            np.full(len(source), -1, np.int64)
            if groups is None
            else np.where(groups.of_conversations < 0, -1, groups.of_conversations + firsts[groups.store])
            for source, groups in zip(self._sources, found, strict=True)
        ]
        numbers = torch.from_numpy(np.concatenate(of_conversations))
        nbytes = torch.from_numpy(np.concatenate([*stores.values()]))
        used = torch.zeros(len(nbytes), dtype=torch.bool)
        used[numbers[numbers >= 0]] = True
        return numbers, nbytes * used

    @cached_property
    def _lengths(self) -> Tensor:
        tokens = self._processor.tokens_per_picture
        return torch.from_numpy(np.concatenate([source.lengths(tokens) for source in self._sources]))

    def _sample(self, loaded: LoadedConversation, *, drop: bool) -> ConversationSample:
        """Return the sample of a conversation; UnusableSampleError if it has nothing to learn."""
        ids = _unread(len(loaded.conversation.pictures)) if loaded.ids is None else loaded.ids
        try:
            example, *others = [
                label_conversation(one, self._processor, image_ids=ids) for one in (loaded.conversation, *loaded.others)
            ]
            if others:
                example = join_branches([example, *others], image_token_id=self._processor.image_token_id)
        except ValueError as error:
            raise UnusableSampleError(str(error)) from error
        image, drawn = self._processor.image_token_id, self._drawn(example.input_ids)
        if drop and drawn:
            return self._without_prompt(example, drawn[0], loaded)
        cut = example.cut(self._max_length)
        if (cut.input_ids == image).sum() < (example.input_ids == image).sum():
            raise UnusableSampleError(f"{self._max_length} tokens end within its pictures")
        if (cut.labels[1:] < 0).all() and not drawn:
            raise UnusableSampleError(f"{self._max_length} tokens have nothing that the assistant says")
        return ConversationSample(cut, loaded.rgb, loaded.tokens)

    def _drawn(self, tokens: Tensor) -> list[int]:
        """Return the places of begin tokens before pictures."""
        if self._begin_id is None:
            return []
        opens = (tokens[:-1] == self._begin_id) & (tokens[1:] == self._processor.image_token_id)
        return [int(place) for place in opens.nonzero()[:, 0]]

    def _without_prompt(self, example: Example, start: int, loaded: LoadedConversation) -> ConversationSample:
        """Return the sample of a picture that is drawn after the begin token at ``start`` alone."""
        each, image = self._processor.tokens_per_picture, self._processor.image_token_id
        if each + 1 > self._max_length:
            raise UnusableSampleError(f"{self._max_length} tokens end within its pictures")
        number = int((example.input_ids[:start] == image).sum()) // each
        own = slice(number, number + 1)
        tokens = example.input_ids[start : start + 1 + each]
        alone = Example(tokens, torch.full_like(tokens, IGNORED), example.image_ids[own])
        rgb, stored = (None if x is None else x[own] for x in (loaded.rgb, loaded.tokens))
        return ConversationSample(alone, rgb, stored)


def collate(samples: Sequence[ConversationSample], *, pad_id: int) -> dict[str, Tensor]:
    """Return a batch: input_ids, labels, attention_mask (B, L), and rgb (P, 3, S, S) uint8 or image_ids (P, h, w,
    Q).

    If tokens are stored, image_tokens (P, N, D), float16, come with the ids. Rows are padded on the right. A worker
    sends rgb as bytes, a quarter of the size of floats. A batch without pictures has none of these.
    """
    batch = collate_examples([sample.example for sample in samples], pad_id=pad_id)
    rgb = [sample.rgb for sample in samples if sample.rgb is not None]
    if rgb:
        batch.pop("image_ids", None)
        batch["rgb"] = torch.cat(rgb)
    tokens = [sample.tokens for sample in samples if sample.tokens is not None]
    if tokens:
        batch["image_tokens"] = torch.cat(tokens)
    return batch


def _unread(pictures: int) -> Tensor:
    """Return empty ids that stand for pictures, because places in the prompt only need their number."""
    return torch.empty(pictures, 0, 0, 0, dtype=torch.int64)
