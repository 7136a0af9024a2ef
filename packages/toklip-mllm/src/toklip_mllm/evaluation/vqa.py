"""How well a model answers questions about pictures: ``toklip evaluate vqa``.

Every figure is about texts that the model generated greedily, and comes with the protocol that it was taken by. When
an answer is right is said in :mod:`toklip_mllm.evaluation.answers`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import torch
from PIL import Image
from toklip_core.devices import Compute, refuse_missing_device
from toklip_core.evaluation import refuse_unreadable, warn_of_unreadable
from toklip_core.files import replace_lone_surrogates
from toklip_core.outputs import refuse_output
from toklip_core.pictures import PictureError
from toklip_core.ranges import refuse_counts
from toklip_core.scenes import Scenes
from toklip_core.training import Evaluation
from toklip_core.weights import weights_checksum
from tqdm import tqdm

from toklip_mllm.chat import GREEDY, room
from toklip_mllm.evaluation.questions import Asked, Keys, prompt_of, read_questions, scene_questions
from toklip_mllm.evaluation.report import Answered, VQAReport, reported
from toklip_mllm.evaluation.settings import HeldOutQuestions
from toklip_mllm.model import TokLIPForConditionalGeneration, TokLIPProcessor, cast_weights, load

#: Of an answer.
MAX_NEW_TOKENS = 32


def evaluate_vqa(
    name: Path | str,
    questions: Path | str,
    *,
    root: Path | str | None = None,
    keys: Keys | None = None,
    prompt: str = "{}",
    answers: Path | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    compute: Compute = Compute(),
) -> VQAReport:
    """Evaluate a model on a file of questions or on scenes, as ``toklip evaluate vqa`` does.

    Args:
        name: model, see :func:`toklip_mllm.model.load`.
        questions: file of questions, or scenes, such as ``scenes:held-out?count=64``; see
            :func:`toklip_mllm.evaluation.read_questions`.
        root: folder that picture paths are relative to; None: that of the file.
        keys: names of the file's columns.
        prompt: prompt for the model; {} stands for the question.
        answers: JSONL file to write each question and the model's answer to, batch by batch.
        max_new_tokens: maximum number of new tokens per answer.
        compute: where, and how many questions at a time; its dtype is that of the model, whose VQ tokenizer stays in
            float32.

    Raises:
        FileNotFoundError: the file, the model, or the folder of ``answers`` is missing.
        LookupError: the model's VQ tokenizer is not installed.
        ValueError: the prompt has no {}, the file is malformed, or no picture can be read.
    """
    refuse_counts(max_new_tokens=max_new_tokens)
    if "{}" not in prompt:
        raise ValueError(f"got the prompt {prompt!r}; put {{}} where the question goes")
    prompt = replace_lone_surrogates(prompt)
    asked = read_questions(questions, root=root, keys=keys, max_pixels=compute.max_pixels)
    if answers is not None:
        shown = {picture.name for one in asked for picture in one.pictures}
        refuse_output(answers, [questions, *sorted(shown)], option="--answers")
    refuse_missing_device(compute.device)
    model, processor = load(name)
    protocol = {
        **_of_model(model, name),
        "computed": f"in {compute.dtype} on {compute.device}",
        "inputs": str(questions),
        "prompt": prompt,
        "decoding": f"greedy, up to {max_new_tokens} tokens",
    }
    cast_weights(model.to(compute.device), compute.torch_dtype)
    unreadable: list[str] = []
    said = answer_questions(
        model, processor, asked, unreadable, prompt=prompt, max_new_tokens=max_new_tokens, compute=compute
    )
    answered = [*(said if answers is None else _written(said, answers))]
    report = reported(answered)
    return replace(report, protocol={**protocol, **report.protocol}, unreadable=tuple(unreadable))


def held_out_questions(config: HeldOutQuestions, *, image_size: int) -> list[Asked]:
    """Return the questions that the settings of a run name, none by default; ValueError if a picture is unreadable."""
    if config.questions is not None:
        asked = read_questions(config.questions, root=config.root)
        refuse_unreadable(picture for one in asked for picture in one.pictures)
        return asked
    return scene_questions(Scenes(config.scenes, split="held-out", size=image_size))


def evaluated(
    model: TokLIPForConditionalGeneration, processor: TokLIPProcessor, asked: Sequence[Asked], prompt: str = "{}"
) -> Evaluation:
    """Return the shares of right answers, of all and of each type, for the log of a run.

    Of several processes each measures all of it: a sharded model is called equally often in all of them.
    """
    unreadable: list[str] = []
    report = reported([*answer_questions(model, processor, asked, unreadable, prompt=prompt)])
    warn_of_unreadable(unreadable)
    shares = {"exact_match": report.exact_match, "multiple_choice": report.multiple_choice}
    shares |= report.by_type if len(report.by_type) > 1 else {}
    return Evaluation({name: share.right for name, share in shares.items() if share is not None})


@torch.no_grad()
def answer_questions(
    model: TokLIPForConditionalGeneration,
    processor: TokLIPProcessor,
    asked: Sequence[Asked],
    unreadable: list[str],
    *,
    prompt: str = "{}",
    max_new_tokens: int = MAX_NEW_TOKENS,
    compute: Compute = Compute(),
) -> Iterator[Answered]:
    """Yield the questions with what the model says, by greedy search.

    Args:
        model: in eval mode, on its device.
        processor: of the model.
        asked: the questions; a picture that several of a batch are about is encoded once.
        unreadable: questions whose pictures cannot be read are added here, "name: reason".
        prompt: what the model is asked, with {} where the question goes.
        max_new_tokens: maximum number of new tokens per answer.
        compute: says how many questions are answered at a time, and whether a bar is shown.

    Raises:
        ValueError: no picture can be read.
    """
    count = 0
    with tqdm(total=len(asked), unit=" questions", disable=None if compute.progress else True) as bar:
        for start in range(0, len(asked), compute.batch_size):
            batch = asked[start : start + compute.batch_size]
            pictures = _read(batch, unreadable)
            readable = [one for one in batch if all(picture.name in pictures for picture in one.pictures)]
            if readable:
                prompts = [prompt_of(one, prompt) for one in readable]
                answers = _said(model, processor, readable, prompts, pictures, max_new_tokens)
                yield from map(Answered, readable, answers)
            count += len(readable)
            bar.update(len(batch))
    if not count:
        raise ValueError(f"the pictures of none of {len(asked)} questions can be read; the first: {unreadable[0]}")


def _of_model(model: TokLIPForConditionalGeneration, name: Path | str) -> dict[str, str | int]:
    config = model.config
    return {
        "model": str(name),
        "weights": f"sha256 {weights_checksum(model)}",
        "tokenizer": f"{config.tokenizer}, sha256 {config.tokenizer_checksum}",
        "size": f"{config.image_size} x {config.image_size}, resize {config.resize}",
    }


def _read(asked: Sequence[Asked], unreadable: list[str]) -> dict[str, Image.Image]:
    found: dict[str, Image.Image] = {}
    for one in asked:
        for picture in one.pictures:
            try:
                found[picture.name] = found.get(picture.name) or picture.read()
            except PictureError as error:
                unreadable.append(f"{one.name}: {picture.name}: {error}")
                break
    return found


def _said(
    model: TokLIPForConditionalGeneration,
    processor: TokLIPProcessor,
    asked: Sequence[Asked],
    prompts: Sequence[str],
    pictures: dict[str, Image.Image],
    max_new_tokens: int,
) -> list[str]:
    """What the model says to some prompts, whose pictures come first."""
    rows = {name: row for row, name in enumerate(pictures)}
    order = [rows[picture.name] for one in asked for picture in one.pictures]
    image_ids = processor.encode([*pictures.values()], model.device)[order] if order else None
    token = processor.image_token
    # What a question writes in place of a picture is no place for one: the pictures have theirs.
    prompts = [text.replace(token, "").strip() if token in text else text for text in prompts]
    talks = [
        [{"role": "user", "content": "\n".join([*[token] * len(one.pictures), text])}]
        for one, text in zip(asked, prompts, strict=True)
    ]
    inputs = processor.apply_chat_template(
        talks,
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
        image_ids=image_ids,
        processor_kwargs={"padding": True, "padding_side": "left"},
    ).to(model.device)
    length = inputs["input_ids"].shape[1]
    said = model.generate(**inputs, max_new_tokens=room(model, length, max_new_tokens), **GREEDY)[:, length:]
    return [text.strip() for text in processor.tokenizer.batch_decode(said, skip_special_tokens=True)]


def _row(asked: Asked) -> dict[str, Any]:
    names = [picture.name for picture in asked.pictures]
    return {"name": asked.name, "pictures": names, **asked._asdict()} | {"pictures": names}


def _written(answered: Iterator[Answered], path: Path) -> Iterator[Answered]:
    """Pass answers on, each written into a file as it comes: what was said before a kill is not lost."""
    with ExitStack() as stack:
        file: IO[str] | None = None
        for one in answered:
            if file is None:  # what was there before goes with the first answer, not with a model that does not load
                file = stack.enter_context(path.open("w", encoding="utf-8"))
            file.write(json.dumps({**_row(one.asked), "said": one.answer, "right": one.right}) + "\n")
            file.flush()
            yield one
