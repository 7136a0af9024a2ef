"""Answers of a model to a batch of conversations, each as if it had been asked alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from toklip_mllm.model import TokLIPForConditionalGeneration, TokLIPProcessor


def generate_answers(
    model: TokLIPForConditionalGeneration,
    processor: TokLIPProcessor,
    conversations: Sequence[Sequence[Mapping[str, Any]]],
    *,
    image_ids: Tensor | None = None,
    max_new_tokens: int,
    options: Mapping[str, Any],
) -> list[str]:
    """Return one answer per conversation; a long prompt does not shorten the answers to the others.

    Args:
        model: model in evaluation mode.
        processor: processor of the model.
        conversations: messages, see :meth:`toklip_mllm.model.TokLIPProcessor.apply_chat_template`.
        image_ids: (P, h, w, Q), ids of all pictures; None: the pictures are in the messages.
        max_new_tokens: maximum number of new tokens per answer; the context may end before.
        options: further options of ``generate``.

    Raises:
        ContextError: a conversation leaves no room for an answer.
        ValueError: a picture cannot be read, or the chat template refuses the messages.
    """
    inputs = processor.apply_chat_template(
        conversations,
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
        image_ids=image_ids,
        processor_kwargs={"padding": True, "padding_side": "left", "device": model.device},
    )
    length = inputs["input_ids"].shape[1]
    room = model.room_for_answer(length, max_new_tokens)
    shortest = int(inputs["attention_mask"].sum(1).min())
    if model.room_for_answer(shortest, max_new_tokens) > room:
        counts = (inputs["input_ids"] == processor.image_token_id).sum(1) // processor.tokens_per_picture
        own: list[Tensor | None] = [None] * len(conversations)
        if "image_ids" in inputs:
            own = [ids if len(ids) else None for ids in inputs["image_ids"].split(counts.tolist())]
        return [
            answer
            for one, ids in zip(conversations, own, strict=True)
            for answer in generate_answers(
                model, processor, [one], image_ids=ids, max_new_tokens=max_new_tokens, options=options
            )
        ]
    tokens = model.generate(**inputs, max_new_tokens=room, **options)[:, length:]
    return [str(text) for text in processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
