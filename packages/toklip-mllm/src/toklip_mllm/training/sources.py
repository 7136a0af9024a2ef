"""Conversations from files and about scenes, by epoch and index, with pictures in the form that the model needs."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from toklip_core.captioned import CaptionedSamples
from toklip_core.files import named_error
from toklip_core.pictures import PictureError, Resize, key_of, open_picture, picture_to_rgb, resized
from toklip_core.scenes import Question, Scene, Scenes, scene
from toklip_core.store import StoreInfo, TokenStore, refuse_mixed, refuse_other_squares
from toklip_core.training import derived_seed
from torch import Tensor

from toklip_mllm.training.conversations import PLACEHOLDER, Conversation, read_conversations
from toklip_mllm.training.settings import Conversations, ConversationSource, Drawings, SceneConversations

#: Bytes of stored tokens that each process keeps in memory per store: 1,800 pictures of 256 x 1152.
TOKEN_MEMORY = 2**30

#: Requests for the caption of a scene.
REQUESTS = ("describe the picture.", "describe this picture.", "what is in the picture?", "what does the picture show?")

#: Requests for a drawing of a scene.
DRAW_REQUESTS = (
    "draw {caption}",
    "draw {caption}.",
    "please draw {caption}.",
    "paint {caption}.",
    "show me {caption}.",
)

#: Bytes of a row of a store of ids, such that a window of conversations has 2^15 of them; see ConversationSamples.
_BYTES_OF_ROW = TOKEN_MEMORY // 2**16

#: Rough number of letters per token; only the order of lengths matters.
_LETTERS = 4

#: What comes before the first question about a picture that the user shows.
_SHOWN = f"{PLACEHOLDER}\n"

#: Number of first turns by which sequences of speakers are told apart.
_ROLES = 6

_log = logging.getLogger(__name__)


class PictureFormat(NamedTuple):
    """Form of a picture that a model takes."""

    image_size: int
    resize: Resize


class LoadedConversation(NamedTuple):
    """A conversation, with its pictures as RGB values or ids; both are None without pictures."""

    conversation: Conversation
    #: (P, 3, S, S), uint8.
    rgb: Tensor | None
    #: (P, h, w, Q), int64.
    ids: Tensor | None
    #: (P, N, D), float16, outputs of the semantic encoder; see :func:`use_stored_tokens`.
    tokens: Tensor | None = None
    #: More conversations about the same pictures, which see neither this one nor one another.
    others: tuple[Conversation, ...] = ()


class Groups(NamedTuple):
    """Groups of a token store that have the tokens of conversations; a row is read with its group."""

    store: Path
    #: (conversations,), int64: group of the first picture, or -1 without pictures.
    of_conversations: NDArray[np.int64]
    #: (groups,), int64: bytes of tokens in each group of the store.
    nbytes: NDArray[np.int64]


class ConversationReader(Protocol):
    """Conversations by (epoch, index)."""

    def __len__(self) -> int:
        """Number of conversations in an epoch."""

    def __getitem__(self, key: tuple[int, int]) -> LoadedConversation:
        """Return a conversation with its pictures; PictureError if one of them cannot be read."""

    def name(self, index: int) -> str:
        """Return the name of a conversation for messages."""

    def texts(self, index: int) -> list[str]:
        """Return the texts of a conversation of epoch 0."""

    def of_each_kind(self) -> Iterator[Conversation]:
        """Yield one conversation of each sequence of speakers, on which a chat template may depend."""

    def lengths(self, tokens_per_picture: int) -> NDArray[np.int64]:
        """Return the rough lengths (conversations,) in tokens; negative for those without a picture."""

    @property
    def stored(self) -> StoreInfo | None:
        """Info of its token store; None without a store."""

    @property
    def groups(self) -> Groups | None:
        """Groups that tokens are read from; None if none are read."""


def open_sources(
    sources: Sequence[ConversationSource], picturing: PictureFormat, *, seed: int
) -> list[ConversationReader]:
    """Return readers for the sources of the settings, and check that no file and no placeholder is missing.

    Pictures are read when their conversation comes.

    Raises:
        FileNotFoundError: a file that a source names is missing.
        ValueError: a file is malformed, stores do not fit one another or the model, or stores and pixels are mixed.
    """
    stores = [store for store in map(_store_of, sources) if store is not None]
    if stores and len(stores) < len(sources):
        raise ValueError(
            f"got the token store {stores[0]} beside sources without one, but a batch has either ids or pixels; encode "
            "all pictures, or read all of them as pictures"
        )
    readers: list[ConversationReader] = []
    for number, source in enumerate(sources):
        own_seed = derived_seed(seed, number)
        if isinstance(source, SceneConversations):
            readers.append(SceneReader(source, picturing, own_seed))
        elif isinstance(source, Drawings):
            readers.append(DrawingReader(source, picturing, own_seed))
        else:
            readers.append(FileReader(source, picturing))
    infos = [source.stored for source in readers if source.stored is not None]
    refuse_mixed(list(zip(stores, infos, strict=True)))
    return readers


def repeat_readers(
    readers: Sequence[ConversationReader], sources: Sequence[ConversationSource]
) -> list[ConversationReader]:
    """Return the readers of sources with as many passes in an epoch as the settings of each say."""
    pairs = zip(readers, sources, strict=True)
    return [reader if source.passes == 1 else RepeatedReader(reader, source.passes) for reader, source in pairs]


def use_stored_tokens(sources: Sequence[ConversationReader], encoder_checksum: str | None) -> bool:
    """Make readers use stored tokens if all stores have those of this encoder; return whether they do.

    Otherwise a warning says why, and only the ids are used, which mean the same.

    Args:
        sources: readers from :func:`open_sources`.
        encoder_checksum: checksum in the model's config; None: it has none.
    """
    files = [
        source for source in sources if isinstance(source, FileReader | SceneReader | DrawingReader) and source.stored
    ]
    having = [source for source in files if isinstance(source, FileReader) and source.stored and source.stored.tokens]
    if not having:
        return False
    reason = ""
    if len(having) < len(files):
        reason = f"{next(source.path for source in files if source not in having)} has none, or is of scenes or drawn"
    elif encoder_checksum is None:
        reason = "the model does not tell whose tokens it takes: its encoder was trained, or it is of an older release"
    else:
        for source in having:
            assert source.stored is not None and source.stored.tokens is not None
            if (found := source.stored.tokens.weights_checksum) != encoder_checksum:
                reason = f"those of {source.path} are of another encoder (sha256 {found[:16]}) than the model's "
                reason += f"({encoder_checksum[:16]})"
    if reason:
        _log.warning("stored tokens are not used; the encoder computes tokens from the ids: %s", reason)
        return False
    stores: dict[Path | None, TokenStore] = {}
    for source in having:
        source.read_tokens(stores, TOKEN_MEMORY)
    return True


def iterate_texts(sources: Sequence[ConversationReader], conversations: int) -> Iterator[str]:
    """Yield the texts of some conversations of epoch 0, spread evenly over all sources."""
    total = sum(map(len, sources))
    for source in sources:
        count = min(len(source), max(1, round(conversations * len(source) / total)))
        for number in range(count):
            yield from source.texts(number * len(source) // count)


def _length(loaded: LoadedConversation, tokens_per_picture: int) -> int:
    """Return the rough length in tokens of a conversation and the others about its pictures."""
    messages = [message for one in (loaded.conversation, *loaded.others) for message in one.messages]
    letters = sum(len(message["content"]) for message in messages)
    return letters // _LETTERS + len(loaded.conversation.pictures) * tokens_per_picture + 1


class SceneReader:
    """Conversations about scenes: questions and a request for the caption, in random order or each by itself."""

    groups = None

    def __init__(self, source: SceneConversations, picturing: PictureFormat, seed: int) -> None:
        self._source, self._size, self._seed = source, picturing.image_size, seed
        self.path = source.store
        self.stored: StoreInfo | None = None
        if source.store is not None:
            named = Scenes(
                source.count * source.scenes,
                source.seed,
                size=self._size,
                objects=source.objects,
                background=source.background,
            )
            keys = {named.key(index): index for index in range(len(named))}
            kind = {"objects": source.objects, "background": source.background}
            others = "".join(f"&{name}={value}" for name, value in kind.items() if value is not None)
            wanted = f"scenes:train?count={len(named)}&seed={source.seed}&size={self._size}{others}"
            hint = f'run `toklip encode "{wanted}"` into it'
            self.stored, self._ids, _ = _stored_ids(source.store, keys, picturing, hint)

    def __len__(self) -> int:
        return self._source.count

    def __getitem__(self, key: tuple[int, int]) -> LoadedConversation:
        """Return a conversation about new scenes; a store has the same ones for each epoch."""
        epoch, index = key
        first = (index if self.stored else epoch * len(self) + index) * self._source.scenes
        name = self.name(index)
        draw = random.Random(derived_seed(self._seed, *key))
        scenes = [self._scene(first + number) for number in range(self._source.scenes)]
        rgb = ids = None
        if self.stored:
            ids = torch.from_numpy(self._ids[first : first + len(scenes)].astype(np.int64))
        else:
            rgb = torch.stack([picture_to_rgb(one.rgb) for one in scenes])
        # The pictures in conversations are empty, because their RGB values come separately.
        if self._source.independent:
            alone = [self._shown([turn], draw) for turn in self._turns(scenes[0], draw)]
            one, *others = (Conversation(name, tuple(messages), ("",)) for messages in alone)
            return LoadedConversation(one, rgb, ids, others=tuple(others))
        messages = [message for one in scenes for message in self._messages(one, draw)]
        conversation = Conversation(name, tuple(messages), ("",) * len(scenes))
        return LoadedConversation(conversation, rgb, ids)

    def _scene(self, index: int) -> Scene:
        of = self._source
        return scene(index, seed=of.seed, size=self._size, objects=of.objects, background=of.background)

    def _messages(self, drawn: Scene, draw: random.Random) -> list[dict[str, str]]:
        """Return the messages about one scene, which the first of them shows or the second draws."""
        turns = self._turns(drawn, draw)
        shown = self._shown(turns, draw)
        if self._source.drawn_share and draw.random() < self._source.drawn_share:
            wanted = draw.choice(DRAW_REQUESTS).format(caption=draw.choice(drawn.captions))
            first = {**shown[0], "content": shown[0]["content"].removeprefix(_SHOWN)}
            drawing = [{"role": "user", "content": wanted}, {"role": "assistant", "content": PLACEHOLDER}]
            return [*drawing, first, *shown[1:]]
        return shown

    def _turns(self, drawn: Scene, draw: random.Random) -> list[Question]:
        """Return what is asked about a scene, in random order: its caption, if it allows no other question."""
        asked = self._questions(drawn)
        turns = draw.sample(asked, min(self._source.turns or len(asked), len(asked)))
        if draw.random() < self._source.caption_share or not turns:
            request = Question(draw.choice(REQUESTS), draw.choice(drawn.captions), "caption")
            turns.insert(draw.randint(0, len(turns)), request)
        return turns

    @staticmethod
    def _shown(turns: Sequence[Question], draw: random.Random) -> list[dict[str, str]]:
        """Return the messages of turns, the first of which shows a picture."""
        messages = [
            {"role": role, "content": text}
            for turn in turns
            for role, text in (("user", as_typed(turn.text, draw)), ("assistant", turn.answer))
        ]
        messages[0]["content"] = _SHOWN + messages[0]["content"]
        return messages

    def name(self, index: int) -> str:
        """Return the number of a conversation, and the seed of its scenes."""
        return f"conversation {index} about scenes of seed {self._source.seed}"

    def texts(self, index: int) -> list[str]:
        """Return all questions, answers and captions of the first scene of a conversation, with all requests."""
        drawn = self._scene(index * self._source.scenes)
        questions = self._questions(drawn)
        asked = [text for one in questions for text in (one.text, american(one.text), one.answer)]
        return [*asked, *drawn.captions, *REQUESTS, *(request.format(caption="") for request in DRAW_REQUESTS)]

    def _questions(self, drawn: Scene) -> list[Question]:
        """Return all questions about a scene, each once."""
        rounds = [question for number in range(self._source.rounds) for question in drawn.questions_of_round(number)]
        found = dict.fromkeys([*rounds, *drawn.questions_of_places])
        return [question for question in found if question.kind in self._source.questions]

    def of_each_kind(self) -> Iterator[Conversation]:
        """Yield the first conversation, because all begin with a question, and one with a drawing."""
        yield self[0, 0].conversation
        if self._source.drawn_share:
            others = (self[0, index].conversation for index in range(len(self)))
            draws = {"role": "assistant", "content": PLACEHOLDER}
            yield from islice((one for one in others if draws in one.messages), 1)

    def lengths(self, tokens_per_picture: int) -> NDArray[np.int64]:
        """Return the length of the first conversation for all of them."""
        return np.full(len(self), _length(self[0, 0], tokens_per_picture), np.int64)


def american(text: str) -> str:
    """Return a text about scenes in American spelling."""
    return text.replace("colour", "color")


def as_typed(text: str, draw: random.Random) -> str:
    """Return a text as people type it: a third in American spelling, a fifth without the mark at its end."""
    spelled = american(text) if draw.random() < 1 / 3 else text
    return spelled.rstrip("?.") if draw.random() < 0.2 else spelled


class FileReader:
    """Conversations of a file, kept as bytes, because half a million objects would take gigabytes."""

    groups: Groups | None

    def __init__(self, source: Conversations, picturing: PictureFormat) -> None:
        rows, first, paths = list[bytes](), list[int](), dict[str, int]()
        self._letters, self._pictures = [], []
        self._kinds = dict[tuple[str, ...], int]()
        self.path, self.groups = source.store, None
        for conversation in read_conversations(source.file, root=source.root):
            roles = tuple(message["role"] for message in conversation.messages)
            if "assistant" not in roles:
                raise ValueError(f"{conversation.name}: the assistant says nothing in it, so there is nothing to learn")
            self._kinds.setdefault(roles[:_ROLES], len(rows))
            pictures = [str(picture) for picture in conversation.pictures]
            rows.append(json.dumps([conversation.name, conversation.messages, pictures]).encode())
            self._letters.append(sum(len(message["content"]) for message in conversation.messages))
            self._pictures.append(len(pictures))
            for path in pictures if source.store is not None else ():
                paths.setdefault(path, len(paths))
            first.append(paths.get(pictures[0], -1) if pictures else -1)
        if not rows:
            raise ValueError(f"{source.file} holds no conversation; name a file with one or more")
        self._blob = b"".join(rows)
        self._ends = np.cumsum([len(row) for row in rows])
        self._picturing, self._max_pixels = picturing, source.max_pixels
        self.stored: StoreInfo | None = None
        if source.store is not None:
            self.stored, self._ids, self._places = _stored_ids(
                source.store, paths, picturing, "encode the folder by the name that root has"
            )
            self._rows, self._first = paths, np.array(first, np.int64)
            self._store: TokenStore | None = None

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, key: tuple[int, int]) -> LoadedConversation:
        """Return a conversation with the RGB values or ids of its pictures."""
        conversation = self._conversation(key[1])
        if not conversation.pictures:
            return LoadedConversation(conversation, None, None)
        if self.stored is not None:
            rows = [self._rows[str(picture)] for picture in conversation.pictures]
            ids = torch.from_numpy(self._ids[rows].astype(np.int64))
            return LoadedConversation(conversation, None, ids, self._tokens(rows))
        rgb = torch.stack([self._read(str(picture)) for picture in conversation.pictures])
        return LoadedConversation(conversation, rgb, None)

    def read_tokens(self, stores: dict[Path | None, TokenStore], memory: int) -> None:
        """Read tokens, too, from now on; readers of one store share it and its memory."""
        assert self.path is not None and self.stored is not None and self.stored.tokens is not None
        each = 2 * self.stored.tokens.count * self.stored.tokens.width
        if self.path not in stores:
            stores[self.path] = TokenStore(self.path, cached_rows=memory // each, features=("tokens",))
        self._store = stores[self.path]
        sizes = np.array(self._store.group_rows, np.int64)
        group_of = np.searchsorted(sizes.cumsum(), self._places, side="right")
        of_conversations = np.where(self._first < 0, -1, group_of[self._first] if len(group_of) else -1)
        self.groups = Groups(self.path, of_conversations, sizes * each)

    def name(self, index: int) -> str:
        """Return the file, the row, and the id if the conversation has one."""
        return self._conversation(index).name

    def texts(self, index: int) -> list[str]:
        """Return the texts of a conversation."""
        return [message["content"].replace(PLACEHOLDER, " ") for message in self._conversation(index).messages]

    def of_each_kind(self) -> Iterator[Conversation]:
        """Yield the first conversation of each sequence of speakers in the first turns."""
        yield from map(self._conversation, self._kinds.values())

    def lengths(self, tokens_per_picture: int) -> NDArray[np.int64]:
        """Return lengths (conversations,) from the numbers of letters and pictures."""
        pictures = np.array(self._pictures, np.int64)
        lengths = np.array(self._letters, np.int64) // _LETTERS + pictures * tokens_per_picture + 1
        return lengths * np.where(pictures > 0, 1, -1)

    def _conversation(self, index: int) -> Conversation:
        start = int(self._ends[index - 1]) if index else 0
        name, messages, pictures = json.loads(self._blob[start : int(self._ends[index])])
        return Conversation(name, tuple(messages), tuple(pictures))

    def _tokens(self, rows: list[int]) -> Tensor | None:
        if self._store is None:
            return None
        # Tokens are float16 in the store, so nothing is lost.
        return torch.stack([cast(Tensor, self._store[int(self._places[row])].tokens).half() for row in rows])

    def _read(self, path: str) -> Tensor:
        try:
            picture = open_picture(path, max_pixels=self._max_pixels)
        except PictureError as error:
            raise PictureError(f"{path}: {error}") from error
        except (OSError, MemoryError) as error:
            raise named_error(error, path) from error
        return picture_to_rgb(resized(picture, self._picturing.image_size, self._picturing.resize))


class DrawingReader:
    """Captioned pictures as conversations: the user says the caption, and the assistant answers with the picture."""

    def __init__(self, source: Drawings, picturing: PictureFormat, seed: int) -> None:
        self._source, self._seed = source, seed
        self._samples = CaptionedSamples(
            [source.pictures], image_size=picturing.image_size, resize=picturing.resize, seed=seed
        )
        self.path = _store_of(source)
        self.groups = self._groups_of_store()

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, key: tuple[int, int]) -> LoadedConversation:
        """Return the request for a picture, and the picture."""
        sample = self._samples[key]
        request = random.Random(derived_seed(self._seed, *key, -1)).choice(self._source.requests)
        # Placeholders in a caption are removed, because the picture has its place in the answer.
        asked = {"role": "user", "content": request.replace("{caption}", sample["caption"].replace(PLACEHOLDER, ""))}
        conversation = Conversation(self.name(key[1]), (asked, {"role": "assistant", "content": PLACEHOLDER}), ("",))
        rgb, ids = (sample[name][None] if name in sample else None for name in ("rgb", "ids"))
        return LoadedConversation(conversation, rgb, ids)

    def name(self, index: int) -> str:
        """Return the number of the picture and the kind of its source."""
        return f"picture {index} of the {self._source.pictures.kind} to draw"

    def texts(self, index: int) -> list[str]:
        """Return a caption of a picture in all requests."""
        caption = self._samples[0, index]["caption"]
        return [request.replace("{caption}", caption) for request in self._source.requests]

    def of_each_kind(self) -> Iterator[Conversation]:
        """Yield the first conversation, because all are of one kind."""
        yield self[0, 0].conversation

    def lengths(self, tokens_per_picture: int) -> NDArray[np.int64]:
        """Return the length of the first conversation for all of them."""
        return np.full(len(self), _length(self[0, 0], tokens_per_picture), np.int64)

    @property
    def stored(self) -> StoreInfo | None:
        """Info of its token store; None without a store."""
        return self._samples.stored

    def _groups_of_store(self) -> Groups | None:
        """Return the groups in which rows of a store are read, so that a window of conversations reads few of them."""
        if self.path is None:
            return None
        sizes = np.array(TokenStore(self.path, features=()).group_rows, np.int64)
        return Groups(self.path, np.repeat(np.arange(len(sizes)), sizes), sizes * _BYTES_OF_ROW)


class RepeatedReader:
    """Conversations of a reader, several times in an epoch: a pass of the epoch is an epoch of the reader."""

    def __init__(self, reader: ConversationReader, passes: int) -> None:
        self._reader, self._passes = reader, passes

    def __len__(self) -> int:
        return len(self._reader) * self._passes

    def __getitem__(self, key: tuple[int, int]) -> LoadedConversation:
        """Return a conversation of one of the passes."""
        number, place = divmod(key[1], len(self._reader))
        return self._reader[key[0] * self._passes + number, place]

    def name(self, index: int) -> str:
        """Return the reader's name of the conversation."""
        return self._reader.name(index % len(self._reader))

    def texts(self, index: int) -> list[str]:
        """Return the texts of the conversation in the reader's epoch 0."""
        return self._reader.texts(index % len(self._reader))

    def of_each_kind(self) -> Iterator[Conversation]:
        """Yield one conversation of each sequence of speakers, as the wrapped reader does."""
        return self._reader.of_each_kind()

    def lengths(self, tokens_per_picture: int) -> NDArray[np.int64]:
        """Return the reader's lengths, once for each pass."""
        return np.tile(self._reader.lengths(tokens_per_picture), self._passes)

    @property
    def stored(self) -> StoreInfo | None:
        """Info of the reader's token store; None without a store."""
        return self._reader.stored

    @property
    def groups(self) -> Groups | None:
        """Groups of the reader's conversations, once for each pass."""
        own = self._reader.groups
        return own and own._replace(of_conversations=np.tile(own.of_conversations, self._passes))


def store_checksums(sources: Sequence[ConversationSource]) -> list[str]:
    """Return the checksums of the token stores that sources of the settings read, each once."""
    stores = dict.fromkeys(map(_store_of, sources))
    return [TokenStore(store, features=()).checksum for store in stores if store is not None]


def _store_of(source: ConversationSource) -> Path | None:
    """Return the token store that a source of the settings reads, or None."""
    own = source.pictures if isinstance(source, Drawings) else source
    return getattr(own, "store", None)


def _stored_ids(
    store: Path, paths: dict[str, int], picturing: PictureFormat, hint: str
) -> tuple[StoreInfo, NDArray[Any], NDArray[np.int64]]:
    """Return a store's info, the ids of some pictures, in their smallest type, and the pictures' rows in the store."""
    opened = TokenStore(store, features=())
    info = opened.info
    refuse_other_squares(info, store, image_size=picturing.image_size, resize=picturing.resize)
    rows: dict[str, list[int]] = {}
    for path, row in paths.items():
        rows.setdefault(key_of(path), []).append(row)
    dtype = np.min_scalar_type(max(info.codebook_sizes) - 1)
    found = np.zeros((len(paths), *info.grid, len(info.codebook_sizes)), dtype)
    places = np.zeros(len(paths), np.int64)
    last = ""
    for place, stored in enumerate(opened):
        last = stored.key
        for row in rows.pop(stored.key, ()):
            found[row], places[row] = stored.ids.numpy(), place
    if rows:
        raise ValueError(
            f"{len(rows)} pictures are not in {store}, such as {next(iter(rows))!r}, while it has keys like {last!r}; "
            + hint
        )
    return info, found, places
