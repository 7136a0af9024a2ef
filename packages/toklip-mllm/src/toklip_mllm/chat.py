"""Conversations with a model about pictures, in which it answers in words and, with an image head, in pictures."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from toklip_core.config import LEAST_TEMPERATURE, MAX_PIXELS, refuse_counts, refuse_drawing
from toklip_core.drawing import Drawing
from toklip_core.files import replace_lone_surrogates
from torch import Tensor

from toklip_mllm.model import PictureInput, PictureOutput, TokLIPForConditionalGeneration, TokLIPProcessor

_log = logging.getLogger(__name__)

#: Options of ``generate`` for greedy search, which override the language model's own generation config.
GREEDY: dict[str, Any] = {
    "do_sample": False,
    "temperature": None,
    "top_p": None,
    "top_k": None,
    "repetition_penalty": 1.0,
}


class Answer(NamedTuple):
    """An answer of the model, with its cost."""

    #: With the image token where a picture is drawn.
    text: str
    #: Number of tokens of the prompt, including those of pictures.
    prompt_tokens: int
    #: Number of new tokens, including those of pictures.
    new_tokens: int
    seconds: float
    #: (P, h, w, Q), int64, ids of the pictures that the answer has; None if there are none.
    image_ids: Tensor | None = None


class Chat:
    """A conversation with a model. Each picture is encoded once, when it is shown, or drawn and never encoded.

    Args:
        model: model in evaluation mode.
        processor: processor of the model.
    """

    def __init__(self, model: TokLIPForConditionalGeneration, processor: TokLIPProcessor) -> None:
        self.model = model
        self.processor = processor
        #: Messages so far, in the form of chat templates.
        self.messages: list[dict[str, str]] = []
        self._features: list[Tensor] = []
        self._shown = 0

    def start_over(self) -> None:
        """Forget all messages; the pictures stay and come before the next question."""
        self.messages, self._shown = [], len(self._features)

    @torch.inference_mode()
    def show(self, pictures: Sequence[PictureInput], *, max_pixels: int = MAX_PIXELS) -> None:
        """Add pictures before the next question; the ValueError names a picture that cannot be read."""
        ids = self.processor.encode(pictures, self.model.device, max_pixels=max_pixels)
        self._features += list(self.model.get_image_features(ids, return_dict=True).pooler_output)
        self._shown += len(ids)

    @torch.inference_mode()
    def ask(
        self,
        question: str,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        streamer: Any = None,  # noqa: ANN401
        drawing: Drawing = Drawing(),
        seed: int = 0,
    ) -> Answer:
        """Ask a question and return the answer; both are added to the messages unless an error is raised.

        If the model opens a picture, it is drawn, and the answer goes on after it, until it ends or is long enough. A
        picture that was drawn can be asked about like one that was shown.

        Args:
            question: question about the pictures shown or drawn so far, or a request for a picture.
            max_new_tokens: maximum number of new tokens, without those of pictures; the context may end before.
            temperature: sampling temperature; 0, or less than 1e-6, always takes the likeliest token.
            top_p: total probability of the likeliest tokens to sample from.
            streamer: streamer of transformers that receives the answer as it is generated.
            drawing: settings of drawing pictures; those that are None are the model's own.
            seed: seed of the first picture of the answer; each further picture adds one.

        Raises:
            ContextError: the conversation is longer than the language model's context, or has no room for a picture.
            ValueError: the chat template refuses the messages, or a number is out of its range.
        """
        refuse_drawing(temperature=temperature, top_p=top_p, seeds=(seed,))
        refuse_counts(max_new_tokens=max_new_tokens)
        start = time.perf_counter()
        question = replace_lone_surrogates(question)
        if unknown := unknown_words(self.processor.tokenizer, question):
            _log.warning("unknown to the model, which reads every unknown word alike: %s", ", ".join(unknown))
        content = f"{self.processor.image_token}\n" * self._shown + question
        messages = [*self.messages, {"role": "user", "content": content}]
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        tokens = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        prompt = torch.tensor([[tokens[i] for i in self.processor.expand(tokens)]], device=self.model.device)
        options = {"streamer": streamer, **_drawing(temperature, top_p), **self._stops()}
        found, drawn = self._answered(prompt, options, words=max_new_tokens, drawing=drawing, seed=seed)
        answer = self._said(found[0, prompt.shape[1] :], len(drawn))
        self._features += [picture.image_features[0] for picture in drawn]
        self.messages = [*messages, {"role": "assistant", "content": answer}]
        self._shown = 0
        new = found.shape[1] - prompt.shape[1]
        pictures = torch.cat([picture.image_ids for picture in drawn]) if drawn else None
        return Answer(answer, prompt.shape[1], new, time.perf_counter() - start, pictures)

    def _answered(
        self, prompt: Tensor, options: dict[str, Any], *, words: int, drawing: Drawing, seed: int
    ) -> tuple[Tensor, list[PictureOutput]]:
        """Return prompt and answer (1, L), and the pictures that were drawn in the answer."""
        found, cache, drawn, begin = prompt, None, list[PictureOutput](), self._begin
        while True:
            left = words - (found.shape[1] - prompt.shape[1] - len(drawn) * self.processor.tokens_per_picture)
            if left < 1:
                return found, drawn
            features = [*self._features, *(picture.image_features[0] for picture in drawn)]
            said = self.model.generate(
                input_ids=found,
                attention_mask=torch.ones_like(found),
                image_features=torch.stack(features) if features else None,
                cache=cache,
                max_new_tokens=room(self.model, found.shape[1], left),
                return_dict_in_generate=True,
                **options,
            )
            found = said.sequences
            if begin is None or int(found[0, -1]) != begin:
                return found, drawn
            # The picture is drawn from the cache, and is in it afterwards.
            seeds = [seed + len(drawn)]
            picture = self.model.draw(found, seeds=seeds, drawing=drawing, cache=_cache_of(said), read_last=False)
            found, cache = picture.sequences, picture.cache
            drawn.append(picture)

    @property
    def _begin(self) -> int | None:
        """Token that opens a picture; None if the model draws none."""
        return None if self.model.image_head is None else self.model.config.head_config.begin_token_id

    def _stops(self) -> dict[str, Any]:
        """Return options of ``generate`` by which a begin token may be said, and ends the text before a picture."""
        if self._begin is None:
            return {}
        ends = self.model.generation_config.eos_token_id
        ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
        never = [token for token in self.model.generation_config.suppress_tokens or () if token != self._begin]
        return {"eos_token_id": [*ends, self._begin], "suppress_tokens": never}

    def _said(self, tokens: Tensor, pictures: int) -> str:
        """Return an answer as text, with the image token in place of the tokens of each picture."""
        if not pictures:
            return str(self.processor.decode(tokens, skip_special_tokens=True)).strip()
        image, parts = self.processor.image_token_id, list[list[int]]([[]])
        for before, token in zip([-1, *tokens.tolist()], tokens.tolist(), strict=False):
            if token == image and before != image:
                parts.append([])
            elif token != image:
                parts[-1].append(token)
        # Nothing is put around it, so that the next prompt has the tokens of this answer.
        return str(self.processor.image_token).join(
            str(self.processor.decode(part, skip_special_tokens=True)) for part in parts
        ).strip()


def _cache_of(found: Any) -> Any:  # noqa: ANN401 - an output of transformers' generate
    """Return the cache in an output of ``generate``, by the name that the installed transformers gives it."""
    return found.get("cache") if "cache" in found else found.past_key_values


def room(model: TokLIPForConditionalGeneration, prompt: int, wanted: int) -> int:
    """Return the number of tokens that an answer may have: ``wanted``, or fewer if the context ends before."""
    context = model.context
    return wanted if context is None else max(1, min(wanted, context - prompt))


def unknown_words(tokenizer: Any, text: str) -> list[str]:  # noqa: ANN401
    """Return the distinct words for which the tokenizer has no token; byte-level tokenizers read all words."""
    if tokenizer.unk_token_id is None or not tokenizer.is_fast:
        return []
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    places = zip(found["input_ids"], found["offset_mapping"], strict=True)
    words = (text[start:end].strip() for token, (start, end) in places if token == tokenizer.unk_token_id)
    return list(dict.fromkeys(words))


def _drawing(temperature: float, top_p: float) -> dict[str, Any]:
    """Return options of ``generate`` that override the sampling options of the model's own generation config."""
    if temperature >= LEAST_TEMPERATURE:
        return {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    return GREEDY
