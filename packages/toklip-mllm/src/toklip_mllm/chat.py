"""Conversations with a model about pictures, in which it answers in words and, with an image head, in pictures."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from PIL import Image
from toklip_core.config import LEAST_TEMPERATURE, refuse_counts, refuse_drawing
from toklip_core.drawing import Drawing, Sampler, Window, refuse_window
from toklip_core.files import replace_lone_surrogates
from torch import Tensor
from transformers import TextStreamer

from toklip_mllm.model import (
    PictureInput,
    PicturePredictor,
    PicturePrompt,
    TokLIPForConditionalGeneration,
    TokLIPProcessor,
)

_log = logging.getLogger(__name__)

#: Options of ``generate`` for greedy search, which override the language model's own generation config.
GREEDY: dict[str, Any] = {
    "do_sample": False,
    "temperature": None,
    "top_p": None,
    "top_k": None,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": None,
    "num_beams": 1,
    "num_return_sequences": 1,
    **dict.fromkeys(("min_p", "typical_p", "top_h", "epsilon_cutoff", "eta_cutoff")),
    **dict.fromkeys(("guidance_scale", "prompt_lookup_num_tokens", "stop_strings")),
}

#: Further options that are off, because each call of ``generate`` makes one token and passes a cache.
_ONE_TOKEN = dict.fromkeys(("cache_implementation", "forced_eos_token_id", "begin_suppress_tokens"))


class DrawnPicture(NamedTuple):
    """A picture that the model drew in an answer."""

    image: Image.Image
    #: (h, w, Q), int64, its ids.
    ids: Tensor
    #: Seed that it was drawn with.
    seed: int


class Answer(NamedTuple):
    """An answer of the model, with its cost."""

    #: Text of the answer; the image token stands for each picture.
    text: str
    #: Number of tokens of the prompt, including those of pictures.
    prompt_tokens: int
    #: Number of new tokens, including those of pictures.
    new_tokens: int
    seconds: float
    #: Pictures of the answer, in order.
    pictures: tuple[DrawnPicture, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return JSON data, without the pictures."""
        figures = {"prompt_tokens": self.prompt_tokens, "new_tokens": self.new_tokens, "seconds": self.seconds}
        return {"answer": self.text, **figures}


@dataclass(frozen=True)
class ChatSettings:
    """Settings of the answers of a conversation.

    Raises:
        ValueError: a number is out of its range.

    >>> ChatSettings(temperature=0.7, top_p=0.9).draws
    True
    """

    #: Maximum number of new tokens per answer, without those of pictures; the context may end before.
    max_new_tokens: int = 256
    #: Sampling temperature of words; 0, or less than 1e-6, always takes the likeliest token.
    temperature: float = 0.0
    #: Total probability of the likeliest tokens to sample words from; without effect at temperature 0.
    top_p: float = 1.0
    #: Settings of drawing pictures; those that are None are the model's own.
    drawing: Drawing = Drawing()
    #: Seed of the first picture that is drawn in the conversation; each further picture adds one.
    seed: int = 0
    #: Whether a model with an image head may answer in pictures.
    draws: bool = True
    #: Largest number of positions of a picture that a call draws, or "auto"; the picture is the same.
    window: Window = 1

    def __post_init__(self) -> None:
        refuse_window(self.window)
        refuse_drawing(temperature=self.temperature, top_p=self.top_p, seeds=(self.seed,))
        refuse_counts(max_new_tokens=self.max_new_tokens)

    @property
    def options(self) -> dict[str, Any]:
        """Options of ``generate``, which override the sampling options of the model's own generation config."""
        if self.temperature >= LEAST_TEMPERATURE:
            drawn = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
            return GREEDY | _ONE_TOKEN | drawn
        return GREEDY | _ONE_TOKEN


class Chat:
    """A conversation with a model, in words and pictures.

    What was read, said and drawn stays in the language model's cache from one answer to the next. A picture that is
    shown is encoded once; one that the model drew is never encoded, because it is in the cache.

    Several conversations may share a model and a processor.

    Args:
        model: model in evaluation mode.
        processor: processor of the model.
        settings: settings of the answers; set the attribute to change those of the next answers.

    >>> from toklip_core.scenes import scene
    >>> from toklip_mllm.model import load_language_model
    >>> chat = Chat(*load_language_model("toklip-mllm-tiny"))
    >>> "".join(chat.say("how many objects are there?", [scene(0).rgb]))
    '3'
    >>> chat.messages[-1]
    {'role': 'assistant', 'content': '3'}
    """

    def __init__(
        self,
        model: TokLIPForConditionalGeneration,
        processor: TokLIPProcessor,
        settings: ChatSettings = ChatSettings(),
    ) -> None:
        self.model, self.processor, self.settings = model, processor, settings
        #: Kept, because it knows from earlier pictures how long a call takes; None until the first picture.
        self._sampler: Sampler[PicturePrompt] | None = None
        self.clear()

    def clear(self) -> None:
        """Forget all messages and pictures."""
        #: Messages so far, in the form of chat templates, with the image token in place of pictures.
        self.messages: list[dict[str, str]] = []
        #: (N, D) each, the pictures so far in the language model's embedding space.
        self._features: list[Tensor] = []
        self._count_drawn = 0
        #: Cache of the language model; None if there is none to go on from.
        self._cache: Any = None
        #: Number of tokens in the cache when its sliding-window layers began to keep all states, as drawing has them
        #: do; None: they keep their window alone.
        self._kept_from: int | None = None
        #: (L,), the tokens that the cache holds.
        self._held = torch.zeros(0, dtype=torch.int64)

    @property
    def draws(self) -> bool:
        """Whether the model may answer in pictures: it has an image head, and the settings do not rule it out."""
        return self.model.image_head is not None and self.settings.draws

    def ask(self, text: str, pictures: Sequence[PictureInput] = ()) -> Answer:
        """Return the whole answer to a message; see :meth:`say`."""
        pieces = self.say(text, pictures)
        while True:
            try:
                next(pieces)
            except StopIteration as end:
                return cast(Answer, end.value)

    @torch.inference_mode()
    def say(
        self, text: str, pictures: Sequence[PictureInput] = ()
    ) -> Generator[str | DrawnPicture, None, Answer]:
        """Yield the answer to a message as it is generated: pieces of text, and pictures that the model draws.

        The generator returns the :class:`Answer`. Message and answer are added to the conversation when it has run to
        its end; if it is closed, or an error is raised, the conversation stays as it was.

        Args:
            text: message of the user, such as a question, or a request for a picture.
            pictures: pictures that are shown before the text.

        Raises:
            ContextError: the conversation is longer than the language model's context, or has no room for a picture.
            ValueError: the text has the image token, a picture cannot be read, or the chat template refuses the
                messages.
        """
        start = time.perf_counter()
        text = replace_lone_surrogates(text)
        if unknown := unknown_words(self.processor.tokenizer, text):
            _log.warning("unknown to the model, which reads every unknown word alike: %s", ", ".join(unknown))
        image = self.processor.image_token
        if image in text:  # it would be read as a picture of an earlier message
            raise ValueError(f"the message has {image!r} in it, which stands for a picture; show the picture itself")
        content = f"{image}\n" * len(pictures) + text
        messages = [*self.messages, {"role": "user", "content": content}]
        prompt, shown = self._prompt(messages), self._features_of(pictures)
        cache, self._cache = self._cache_for(prompt), None  # an answer that is not finished leaves none
        turn = _Turn(prompt, cache, [*self._features, *shown], [], None if cache is None else self._kept_from)
        yield from self._answer(turn)
        new = turn.tokens[0, prompt.shape[1] :]
        answer = self._text_of(new)
        self.messages = [*messages, {"role": "assistant", "content": answer}]
        self._features = turn.features
        self._count_drawn += len(turn.drawn)
        self._cache, self._held = turn.cache, turn.tokens[0, : _length(turn.cache)]
        self._kept_from = turn.kept_from
        return Answer(answer, prompt.shape[1], len(new), time.perf_counter() - start, tuple(turn.drawn))

    def _prompt(self, messages: Sequence[dict[str, str]]) -> Tensor:
        """Return the tokens (1, L) of a conversation, with all places of each picture."""
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        tokens = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return torch.tensor([[tokens[i] for i in self.processor.expand(tokens)]], device=self.model.device)

    def _features_of(self, pictures: Sequence[PictureInput]) -> list[Tensor]:
        """Return pictures in the language model's embedding space, (N, D) each."""
        if not pictures:
            return []
        ids = self.processor.encode(pictures, self.model.device)
        return [*self.model.get_image_features(ids, return_dict=True).pooler_output]

    def _cache_for(self, prompt: Tensor) -> Any:  # noqa: ANN401 - a cache of transformers
        """Return the cache, cut to the tokens with which a prompt (1, L) begins, too; None if it cannot be cut."""
        if self._cache is None:
            return None
        count = min(len(self._held), prompt.shape[1] - 1)
        same = int((self._held[:count] == prompt[0, :count]).long().cumprod(0).sum())
        if same < len(self._held):
            kept = self._kept_from
            if kept is not None and same < kept and _has_windows(self._cache):
                return None  # what its windows need before that was dropped
            try:
                self._cache.crop(same - len(self._held))
            except (RuntimeError, ValueError, NotImplementedError, AttributeError):
                return None  # a window or a recurrence that has forgotten it
            if kept is not None:
                self._kept_from = max(kept, same)  # cutting drops what is before the windows
        return self._cache

    def _answer(self, turn: _Turn) -> Iterator[str | DrawnPicture]:
        """Yield text and pictures of an answer until it ends, is long enough, or fills the context."""
        first, words = turn.tokens.shape[1], _Words(self.processor.tokenizer)
        begin = self.model.config.head_config.begin_token_id if self.draws else None
        ends = self.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        options = dict(self.settings.options)
        if begin is not None:
            never = self.model.generation_config.suppress_tokens or ()
            options["suppress_tokens"] = [token for token in never if token != begin]
        for _ in range(self.settings.max_new_tokens):
            if first < turn.tokens.shape[1] == self.model.context:
                break
            token = self._read_and_choose(turn, options)
            if token == begin:
                yield from words.end()
                yield self._draw(turn)
            elif token in ends:
                break
            else:
                yield from words.add(token)
        yield from words.end()

    def _read_and_choose(self, turn: _Turn, options: dict[str, Any]) -> int:
        """Read the tokens that are not in the cache, and add the next one, which is returned.

        One call of ``generate`` for each token: so an answer can be shown, stopped and continued by a picture after
        each of them, without a second thread. It takes a millisecond or two.
        """
        unread = turn.tokens[:, _length(turn.cache) :]
        shows = bool((unread == self.processor.image_token_id).any())
        found = self.model.generate(
            input_ids=turn.tokens,
            attention_mask=torch.ones_like(turn.tokens),
            image_features=torch.stack(turn.features) if shows else None,
            cache=turn.cache,
            max_new_tokens=1,
            return_dict_in_generate=True,
            **options,
        )
        turn.tokens = found.sequences
        turn.cache = found.get("cache") if "cache" in found else found.past_key_values
        return int(turn.tokens[0, -1])

    def _draw(self, turn: _Turn) -> DrawnPicture:
        """Draw a picture after the begin token, from the cache, which holds it afterwards."""
        seed = self.settings.seed + self._count_drawn + len(turn.drawn)
        drawing = self.settings.drawing
        if turn.kept_from is None:
            turn.kept_from = turn.tokens.shape[1]  # drawing lets windows keep all, so that drafts can be taken back
        if self._sampler is None or cast(PicturePredictor, self._sampler.model).model is not self.model:
            self._sampler = Sampler(PicturePredictor(self.model))
        found = self.model.draw(
            turn.tokens,
            seeds=[seed],
            drawing=drawing,
            cache=turn.cache,
            read_last=False,
            window=self.settings.window,
            sampler=self._sampler,
        )
        image = self.processor.postprocess(found.image_ids)["pixel_values"][0]
        turn.tokens, turn.cache = found.sequences, found.cache
        turn.features.append(found.image_features[0])
        turn.drawn.append(DrawnPicture(image, found.image_ids[0].cpu(), seed))
        return turn.drawn[-1]

    def _text_of(self, tokens: Tensor) -> str:
        """Return an answer as text, with the image token in place of the tokens of each picture."""
        image, parts = self.processor.image_token_id, list[list[int]]([[]])
        for before, token in zip([-1, *tokens.tolist()], tokens.tolist(), strict=False):
            if token == image and before != image:
                parts.append([])
            elif token != image:
                parts[-1].append(token)
        # Nothing is put around it, so that the next prompt has the tokens of this answer.
        return str(self.processor.image_token).join(map(self._words_of, parts)).strip()

    def _words_of(self, tokens: list[int]) -> str:
        """Return tokens of words as text, without names of tokens that stand for a picture, which words may spell."""
        text = str(self.processor.decode(tokens, skip_special_tokens=True))
        names = [name for name in (self.processor.image_token, self.processor.begin_token) if name]
        while any(name in text for name in names):
            for name in names:
                text = text.replace(name, "")
        return text


@dataclass
class _Turn:
    """State of an answer that is being generated."""

    #: (1, L), prompt and answer so far.
    tokens: Tensor
    #: Cache of the first of them; None: of none.
    cache: Any
    #: (N, D) each, all pictures among them.
    features: list[Tensor]
    #: Pictures of the answer.
    drawn: list[DrawnPicture]
    #: See ``Chat._kept_from``.
    kept_from: int | None


class _Words(TextStreamer):  # type: ignore[misc]
    """Pieces of text as transformers' streamers cut them: whole characters, words and line breaks."""

    def __init__(self, tokenizer: Any) -> None:  # noqa: ANN401
        super().__init__(tokenizer, skip_special_tokens=True)
        self._pieces: list[str] = []

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Keep a piece instead of printing it."""
        self._pieces.append(text)

    def add(self, token: int) -> Iterator[str]:
        """Yield the text that is certain after a token."""
        self.put(torch.tensor([token]))
        yield from self._taken()

    def end(self) -> Iterator[str]:
        """Yield the rest of the text."""
        super().end()
        yield from self._taken()

    def _taken(self) -> list[str]:
        pieces, self._pieces = self._pieces, []
        return [piece for piece in pieces if piece]


def _length(cache: Any) -> int:  # noqa: ANN401 - a cache of transformers
    """Return the number of tokens that a cache holds."""
    return 0 if cache is None else int(cache.get_seq_length())


def _has_windows(cache: Any) -> bool:  # noqa: ANN401 - a cache of transformers
    """Return whether a cache has sliding-window layers."""
    return any(getattr(layer, "is_sliding", False) for layer in getattr(cache, "layers", ()))


def unknown_words(tokenizer: Any, text: str) -> list[str]:  # noqa: ANN401
    """Return the distinct words for which the tokenizer has no token; byte-level tokenizers read all words."""
    if tokenizer.unk_token_id is None or not tokenizer.is_fast:
        return []
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    places = zip(found["input_ids"], found["offset_mapping"], strict=True)
    words = (text[start:end].strip() for token, (start, end) in places if token == tokenizer.unk_token_id)
    return list(dict.fromkeys(words))
