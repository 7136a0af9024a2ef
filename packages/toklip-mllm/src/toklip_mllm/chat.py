"""Questions to a model about pictures, once or in a conversation."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from toklip_core.config import LEAST_TEMPERATURE, MAX_PIXELS, refuse_counts, refuse_drawing
from toklip_core.files import replace_lone_surrogates
from torch import Tensor

from toklip_mllm.model import PictureInput, TokLIPForConditionalGeneration, TokLIPProcessor

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

    text: str
    #: Number of tokens of the prompt, including those of pictures.
    prompt_tokens: int
    new_tokens: int
    seconds: float


class Chat:
    """A conversation with a model. Each picture is encoded once, when it is shown.

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
    ) -> Answer:
        """Ask a question and return the answer; both are added to the messages unless an error is raised.

        Args:
            question: question about the pictures shown so far.
            max_new_tokens: maximum number of new tokens; the context may end before.
            temperature: sampling temperature; 0, or less than 1e-6, always takes the likeliest token.
            top_p: total probability of the likeliest tokens to sample from.
            streamer: streamer of transformers that receives the answer as it is generated.

        Raises:
            ContextError: the conversation is longer than the language model's context.
            ValueError: the chat template refuses the messages, or a number is out of its range.
        """
        refuse_drawing(temperature=temperature, top_p=top_p)
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
        found = self.model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            image_features=torch.stack(self._features) if self._features else None,
            max_new_tokens=room(self.model, prompt.shape[1], max_new_tokens),
            streamer=streamer,
            **_drawing(temperature, top_p),
        )[0, prompt.shape[1] :]
        answer = str(self.processor.decode(found, skip_special_tokens=True)).strip()
        self.messages = [*messages, {"role": "assistant", "content": answer}]
        self._shown = 0
        return Answer(answer, prompt.shape[1], len(found), time.perf_counter() - start)


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
