"""``toklip evaluate vqa``: measures how well a model answers questions about pictures.

The model answers by greedy search, and every figure comes with the protocol of its measurement.
:mod:`toklip_mllm.evaluation.answers` defines when an answer is right.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import torch
from PIL import Image
from toklip_core.config import Compute, progress_bar, refuse_counts, refuse_missing_device
from toklip_core.evaluation import refuse_unreadable, warn_of_unreadable
from toklip_core.files import replace_lone_surrogates, why_unreadable
from toklip_core.pictures import READING_ERRORS, refuse_output
from toklip_core.scenes import Scenes
from toklip_core.training import Evaluation
from toklip_core.weights import weights_checksum

from toklip_mllm.chat import GREEDY
from toklip_mllm.evaluation.generation import generate_answers
from toklip_mllm.evaluation.questions import Columns, VQAQuestion, make_prompt, read_questions, scene_questions
from toklip_mllm.evaluation.report import VQAAnswer, VQAReport, report_answers
from toklip_mllm.evaluation.settings import HeldOutQuestions, refuse_prompt
from toklip_mllm.model import (
    ContextError,
    TokLIPForConditionalGeneration,
    TokLIPProcessor,
    cast_weights,
    load_language_model,
)

#: Default maximum number of new tokens per answer.
MAX_NEW_TOKENS = 32


def evaluate_vqa(
    name: Path | str,
    questions: Path | str,
    *,
    root: Path | str | None = None,
    columns: Columns | None = None,
    prompt: str = "{}",
    answers: Path | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    compute: Compute = Compute(),
) -> VQAReport:
    """Evaluate a model on a file of questions or on scenes, as ``toklip evaluate vqa`` does.

    Args:
        name: model, see :func:`toklip_mllm.model.load_language_model`.
        questions: file of questions, or scenes, such as ``scenes:held-out?count=64``; see
            :func:`toklip_mllm.evaluation.read_questions`.
        root: folder that picture paths are relative to; None: that of the file.
        columns: names of the file's columns.
        prompt: prompt for the model; {} stands for the question.
        answers: JSONL file to write each question and the model's answer to, batch by batch.
        max_new_tokens: maximum number of new tokens per answer.
        compute: where, and how many questions at a time; its dtype is that of the model, whose VQ tokenizer stays in
            float32.

    Raises:
        FileNotFoundError: the file, the model, or the folder of ``answers`` is missing.
        LookupError: the model's VQ tokenizer is not installed.
        ContextError: a question leaves no room for an answer; nothing has been answered then.
        ValueError: the prompt has no {}, the file is malformed, or no picture can be read.
    """
    refuse_counts(max_new_tokens=max_new_tokens)
    refuse_prompt(prompt)
    prompt = replace_lone_surrogates(prompt)
    asked = read_questions(questions, root=root, columns=columns, max_pixels=compute.max_pixels)
    if answers is not None:
        shown = {picture.name for one in asked for picture in one.pictures}
        refuse_output(answers, [questions, *sorted(shown)], option="--answers")
    refuse_missing_device(compute.device)
    model, processor = load_language_model(name)
    refuse_long_questions(model, processor, asked, prompt)
    weights = model.state_dict()  # those of the file: moved or cast, the model has others
    cast_weights(model.to(compute.device), compute.torch_dtype)
    unreadable: list[str] = []
    said = answer_questions(
        model, processor, asked, unreadable, prompt=prompt, max_new_tokens=max_new_tokens, compute=compute
    )
    with ThreadPoolExecutor(1) as beside:  # no question waits for the checksum
        checksum = beside.submit(weights_checksum, weights)
        del weights
        answered = [*(said if answers is None else _written(said, answers))]
    report = report_answers(answered)
    protocol = {
        **_of_model(model, name, checksum.result()),
        "computed": f"in {compute.dtype} on {compute.device}",
        "inputs": str(questions),
        "prompt": prompt,
        "decoding": f"greedy, up to {max_new_tokens} tokens",
    }
    return replace(report, protocol={**protocol, **report.protocol}, unreadable=tuple(unreadable))


def held_out_questions(config: HeldOutQuestions, *, image_size: int) -> list[VQAQuestion]:
    """Return the held-out questions of a run's settings, none by default; ValueError if a picture cannot be read."""
    if config.questions is not None:
        questions = read_questions(config.questions, root=config.root)
        refuse_unreadable(picture for one in questions for picture in one.pictures)
        return questions
    return scene_questions(Scenes(config.scenes, split="held-out", size=image_size))


def refuse_long_questions(
    model: TokLIPForConditionalGeneration, processor: TokLIPProcessor, questions: Sequence[VQAQuestion], prompt: str
) -> None:
    """Raise ContextError for questions that leave no room for an answer, before the first of a run is answered."""
    if model.context is None or not questions:
        return
    prompts = [make_prompt(one, prompt) for one in questions]
    texts = processor.apply_chat_template(_conversations(processor, questions, prompts), add_generation_prompt=True)
    for one, text in zip(questions, texts, strict=True):
        length = len(processor.expand(processor.tokenizer(text, add_special_tokens=False)["input_ids"]))
        if length >= model.context:
            raise ContextError(
                f"{one.name}: got a prompt of {length} tokens with its pictures; the language model's context is "
                f"{model.context}, the answer included: leave the question out"
            )


def evaluate_answers(
    model: TokLIPForConditionalGeneration,
    processor: TokLIPProcessor,
    questions: Sequence[VQAQuestion],
    prompt: str = "{}",
) -> Evaluation:
    """Return the shares of right answers, in all and by type, for the log of a run.

    Every process answers all questions, because a sharded model must be called equally often in all processes.
    """
    unreadable: list[str] = []
    report = report_answers([*answer_questions(model, processor, questions, unreadable, prompt=prompt)])
    warn_of_unreadable(unreadable)
    shares = {"exact_match": report.exact_match, "multiple_choice": report.multiple_choice}
    shares |= report.by_type if len(report.by_type) > 1 else {}
    return Evaluation({name: share.right for name, share in shares.items() if share is not None})


@torch.no_grad()
def answer_questions(
    model: TokLIPForConditionalGeneration,
    processor: TokLIPProcessor,
    questions: Sequence[VQAQuestion],
    unreadable: list[str],
    *,
    prompt: str = "{}",
    max_new_tokens: int = MAX_NEW_TOKENS,
    compute: Compute = Compute(),
) -> Iterator[VQAAnswer]:
    """Yield questions with the model's answers by greedy search.

    Args:
        model: model in evaluation mode, on its device.
        processor: processor of the model.
        questions: the questions; a picture shared by several questions of a batch is encoded once.
        unreadable: list to which questions with unreadable pictures are added, as "name: reason".
        prompt: text for the model, with {} in place of the question.
        max_new_tokens: maximum number of new tokens per answer.
        compute: number of questions at a time, and whether to show a progress bar.

    Raises:
        ValueError: no picture can be read.
    """
    count = 0
    with progress_bar(len(questions), shown=compute.progress, unit="questions") as bar:
        for start in range(0, len(questions), compute.batch_size):
            batch = questions[start : start + compute.batch_size]
            pictures = _read(batch, unreadable)
            readable = [one for one in batch if all(picture.name in pictures for picture in one.pictures)]
            if readable:
                prompts = [make_prompt(one, prompt) for one in readable]
                answers = _answer(model, processor, readable, prompts, pictures, max_new_tokens)
                yield from map(VQAAnswer, readable, answers)
            count += len(readable)
            bar.update(len(batch))
    if questions and not count:
        raise ValueError(f"the pictures of none of {len(questions)} questions can be read; the first: {unreadable[0]}")


def _of_model(model: TokLIPForConditionalGeneration, name: Path | str, checksum: str) -> dict[str, str | int]:
    config = model.config
    return {
        "model": str(name),
        "weights": f"sha256 {checksum}",
        "tokenizer": f"{config.tokenizer_record.name}, sha256 {config.tokenizer_record.checksum}",
        "size": f"{config.image_size} x {config.image_size}, resize {config.resize}",
    }


def _read(questions: Sequence[VQAQuestion], unreadable: list[str]) -> dict[str, Image.Image]:
    found: dict[str, Image.Image] = {}
    for one in questions:
        for picture in one.pictures:
            try:
                found[picture.name] = found.get(picture.name) or picture.read()
            except READING_ERRORS as error:
                unreadable.append(f"{one.name}: {picture.name}: {why_unreadable(error)}")
                break
    return found


def _answer(
    model: TokLIPForConditionalGeneration,
    processor: TokLIPProcessor,
    questions: Sequence[VQAQuestion],
    prompts: Sequence[str],
    pictures: dict[str, Image.Image],
    max_new_tokens: int,
) -> list[str]:
    """Return the model's answers to prompts; pictures come before each prompt."""
    rows = {name: row for row, name in enumerate(pictures)}
    order = [rows[picture.name] for one in questions for picture in one.pictures]
    image_ids = processor.encode([*pictures.values()], model.device)[order] if order else None
    conversations = _conversations(processor, questions, prompts)
    answers = generate_answers(
        model, processor, conversations, image_ids=image_ids, max_new_tokens=max_new_tokens, options=GREEDY
    )
    return [answer.strip() for answer in answers]


def _conversations(
    processor: TokLIPProcessor, questions: Sequence[VQAQuestion], prompts: Sequence[str]
) -> list[list[dict[str, str]]]:
    token = processor.image_token
    # Image tokens in a question are removed, because the pictures already have their places.
    prompts = [text.replace(token, "").strip() if token in text else text for text in prompts]
    return [
        [{"role": "user", "content": "\n".join([*[token] * len(one.pictures), text])}]
        for one, text in zip(questions, prompts, strict=True)
    ]


def _row(question: VQAQuestion) -> dict[str, Any]:
    """Return the columns of a question in the file of answers."""
    rest = {"question": question.text, "truths": question.truths, "kind": question.kind, "choices": question.choices}
    return {"name": question.name, "pictures": [picture.name for picture in question.pictures], **rest}


def _written(answers: Iterator[VQAAnswer], path: Path) -> Iterator[VQAAnswer]:
    """Yield answers, and write each to a file at once, so that none is lost if the process is killed."""
    with ExitStack() as stack:
        file: IO[str] | None = None
        for one in answers:
            if file is None:  # an old file is only overwritten once there is an answer
                file = stack.enter_context(path.open("w", encoding="utf-8"))
            file.write(json.dumps({**_row(one.question), "said": one.answer, "right": one.right}) + "\n")
            file.flush()
            yield one
