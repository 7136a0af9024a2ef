"""The plugin of lmms-eval: `lmms-eval --model toklip --model_args pretrained=FOLDER --tasks gqa,pope,mme,...`.

lmms-eval finds :func:`manifest` through its entry point group ``lmms_eval.models``. Needs the extra
``toklip-mllm[lmms-eval]``; nothing else here imports this module.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from toklip_core.config import default_device, refuse_missing_device
from tqdm import tqdm

from toklip_mllm.chat import GREEDY
from toklip_mllm.evaluation.generation import generate_answers
from toklip_mllm.model import load_language_model

#: Maximum number of new tokens per answer, if a task does not set it.
MAX_NEW_TOKENS = 1024


def manifest() -> ModelManifest:
    """Return the description that lmms-eval asks its plugins for."""
    return ModelManifest(model_id="toklip", chat_class_path=f"{__name__}.TokLIPLM")


class TokLIPLM(lmms):  # type: ignore[misc]  # lmms-eval ships no types
    """A saved model for tasks that ask for generated text.

    Args:
        pretrained: model, see :func:`toklip_mllm.model.load_language_model`.
        device: device of the model; None: this process's GPU if there is one.
        dtype: dtype of the model; its VQ tokenizer stays in float32.
        batch_size: number of questions at a time.
        max_batch_size: unused; lmms-eval passes it.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = "toklip-mllm-tiny",
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if dtype not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"got dtype {dtype!r}; known are auto, as the model is stored, float32 and bfloat16")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"got batch_size {batch_size!r}; wanted a number from 1 on")
        self.batch_size = int(batch_size)
        wanted = None if dtype == "auto" else getattr(torch, dtype)
        device = device or default_device()
        refuse_missing_device(device)
        self.model, self.processor = load_language_model(pretrained, device=device, dtype=wanted)

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return torch.device(self.model.device)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Return the model's answers to requests, by greedy search unless a task asks for sampling or beams."""
        found = [""] * len(requests)
        with tqdm(total=len(requests), unit=" questions", disable=self.rank != 0) as bar:
            for numbers in self._batches(requests):
                arguments = [requests[number].args for number in numbers]
                conversations = [self._messages(one) for one in arguments]
                options = dict(arguments[0][2])
                until = options.pop("until", None) or []
                for number, text in zip(numbers, self._answer(conversations, options), strict=True):
                    found[number] = _cut(text, [until] if isinstance(until, str) else until)
                bar.update(len(numbers))
        return found

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Raise NotImplementedError, with advice."""
        raise NotImplementedError("tasks of likelihoods are not offered; take the variant that generates an answer")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Raise NotImplementedError, with advice."""
        raise NotImplementedError("tasks of several rounds are not offered; take one that asks once")

    def _batches(self, requests: Sequence[Instance]) -> Iterator[list[int]]:
        """Yield the indices of requests that are decoded with the same options."""
        alike: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(json.dumps(request.args[2], sort_keys=True, default=str), []).append(number)
        for numbers in alike.values():
            for start in range(0, len(numbers), self.batch_size):
                yield numbers[start : start + self.batch_size]

    def _messages(self, arguments: tuple[Any, ...]) -> list[dict[str, Any]]:
        """Return a document as messages for the processor."""
        _, messages_of, _, document, task, split = arguments
        messages = []
        for message in messages_of(self.task_dict[task][split][document]):
            parts = []
            for part in message["content"]:
                if part["type"] == "image":
                    parts.append({"type": "image", "image": part["url"]})
                elif part["type"] == "text":
                    # Image tokens in a question are removed, because the pictures already have their places.
                    parts.append({"type": "text", "text": part["text"].replace(self.processor.image_token, "")})
                else:
                    raise ValueError(f"the task {task!r} asks about a {part['type']}; this model reads pictures alone")
            messages.append({"role": message["role"], "content": parts})
        return messages

    def _answer(self, conversations: Sequence[list[dict[str, Any]]], options: Mapping[str, Any]) -> list[str]:
        samples = bool(options.get("do_sample", (options.get("temperature") or 0) > 0))
        # The language model's own sampling settings, such as its top-k, are none of the task's.
        drawn = {**GREEDY, "do_sample": True, "temperature": options.get("temperature"), "top_p": options.get("top_p"),
                 "top_k": 0}
        return generate_answers(
            self.model,
            self.processor,
            conversations,
            max_new_tokens=options.get("max_new_tokens", MAX_NEW_TOKENS),
            options={**(drawn if samples else GREEDY), "num_beams": options.get("num_beams") or 1},
        )


def _cut(text: str, until: Sequence[str]) -> str:
    for end in until:
        text = text.split(end)[0] if end else text
    return text.strip()
