"""``toklip train mllm`` and ``toklip evaluate vqa``. Imports click only; the bodies import the rest."""

from __future__ import annotations

import io
import json
import os.path
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from toklip_core.cli import (
    COUNT,
    SEED,
    TrainTask,
    as_json,
    batch_size,
    compute_of,
    device,
    dtype,
    max_pixels,
    named_model,
    temperature,
    top_p,
    train_command,
)

if TYPE_CHECKING:
    from toklip_core.training import FitReport

    from toklip_mllm.chat import Answer, Chat
    from toklip_mllm.training import MLLMTrainConfig

_MODEL = named_model(
    "--model",
    "name",
    kind="language model",
    default="toklip-mllm-tiny",
    help_text="Language model: a name from `toklip models`, a folder, or owner/name on the hub.",
)


@train_command("mllm")
def train_mllm() -> TrainTask[MLLMTrainConfig]:
    """Train a multimodal language model.

    RECIPE is the name of a recipe or a TOML file. A connector maps the tokens of a frozen TokLIP into the embedding
    space of a language model. If the settings say so, the language model is trained too, either fully or with LoRA. The
    result is OUT/model, which `toklip ask --model` accepts. On Ctrl-C, SIGTERM or SIGHUP the run saves a checkpoint and
    exits with status 130, 143 or 129; run the same command again to resume.
    """
    from toklip_mllm.training import RECIPES, MLLMTrainConfig

    def train(config: MLLMTrainConfig, out: Path) -> FitReport:
        from toklip_mllm.training import train_mllm

        return train_mllm(config, out)

    return TrainTask(settings=MLLMTrainConfig, recipes=RECIPES, train=train)


@click.command("vqa")
@click.argument("questions", type=click.Path())
@click.option(
    "--root",
    type=click.Path(),
    help="Folder that the picture paths are relative to. [default: the folder of QUESTIONS]",
)
@click.option("--image", default="image", show_default=True, help="Key of the picture's path, or of a list of paths.")
@click.option("--question", default="question", show_default=True, help="Key of the question.")
@click.option(
    "--answer",
    default="answer",
    show_default=True,
    help="Key of the correct answer, or of a list of answers from several people.",
)
@click.option(
    "--type", "kind", default="type", show_default=True, help="Key of the question's type; types are scored separately."
)
@click.option(
    "--prompt",
    default="{}",
    show_default=True,
    help="Prompt for the model; {} stands for the question. Multiple-choice questions have their own prompt.",
)
@click.option("--answers", type=click.Path(path_type=Path), help="Also write the model's answers to this JSONL file.")
@click.option(
    "--max-new-tokens", type=COUNT, default=32, show_default=True, help="Maximum number of new tokens per answer."
)
@_MODEL
@max_pixels
@batch_size("questions answered at once")
@dtype("Dtype of the model; its VQ tokenizer stays in float32.")
@device
@as_json
def vqa(image: str, question: str, answer: str, kind: str, as_json: bool, **options: Any) -> None:  # noqa: ANN401
    """Measure how well a model answers questions about pictures.

    QUESTIONS is a JSONL file with {"image": PATH, "question": TEXT, "answer": TEXT} in each line, optionally with
    "type" and "choices"; or scenes:SPLIT?count=N, generated scenes with all their questions. Reports exact match,
    multiple-choice accuracy, VQA accuracy (for answers from several people), POPE's metrics (for yes-or-no answers) and
    the protocol.
    """
    from toklip_mllm.evaluation import Columns, evaluate_vqa

    columns = Columns(image, question, answer, kind)
    report = evaluate_vqa(columns=columns, compute=compute_of(options), **options)
    click.echo(json.dumps(report.as_json(), indent=2) if as_json else report.as_text())


_SHOW, _NEW = "/picture ", "/new"


def pictures_and_question(words: Sequence[str]) -> tuple[list[str], str | None]:
    """Return the picture files and the question of ``toklip ask``; the question is the last word unless it is a file.

    Raises:
        ValueError: there is no picture, or the question is empty.
    """
    from toklip_core.pictures import PICTURE_SUFFIXES

    *pictures, last = words or ("",)
    if pictures and not last.strip():
        raise ValueError("the question is empty; ask something, or leave it out for a conversation")
    # A question may be too long for a file's name, and may end like one: "what is in b.png".
    if os.path.isfile(last) or (" " not in last and Path(last).suffix.lower() in PICTURE_SUFFIXES):  # noqa: PTH113
        return [*pictures, last], None
    if not pictures:
        raise ValueError('got no picture; name one before the question: toklip ask PICTURE "QUESTION"')
    return pictures, last


@click.command()
@click.argument("words", nargs=-1, metavar='PICTURE... ["QUESTION"]')
@_MODEL
@click.option(
    "--max-new-tokens", type=COUNT, default=256, show_default=True, help="Maximum number of new tokens per answer."
)
@temperature(default=0.0)
@top_p
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the sampling.")
@max_pixels
@dtype("Dtype of the model. [default: as stored]", default=None)
@device
@click.option("--json", "as_json", is_flag=True, help="Print each answer as one line of JSON.")
def ask(
    words: tuple[str, ...],
    name: str,
    seed: int,
    max_pixels: int,
    dtype: str | None,
    device: str | None,
    as_json: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Ask a language model about pictures.

    The answer is printed as it is generated. Without a question, a conversation starts: each line you type is a
    question, `/picture FILE` adds a picture, `/new` starts over with the same pictures, and Ctrl-D ends it.
    """
    from toklip_core.config import refuse_drawing

    refuse_drawing(temperature=options["temperature"], top_p=options["top_p"])
    from toklip_mllm.model import read_picture

    pictures, question = pictures_and_question(words)
    # Read first, because a model takes seconds to load.
    shown = [read_picture(picture, number, max_pixels=max_pixels) for number, picture in enumerate(pictures, 1)]
    if sys.stderr.isatty():
        click.echo(f"loading {name}", err=True)

    import torch
    from toklip_core.config import default_device, refuse_missing_device
    from transformers.utils import logging

    from toklip_mllm.chat import Chat
    from toklip_mllm.model import ContextError, load

    device = device or default_device()
    refuse_missing_device(device)
    logging.disable_progress_bar()
    torch.manual_seed(seed)
    model, processor = load(name, device=device, dtype=getattr(torch, dtype) if dtype else None)
    chat = Chat(model, processor)
    chat.show(shown)
    if question is not None:
        _answer(chat, question, {"model": name, "pictures": pictures} if as_json else None, options)
        return
    if sys.stderr.isatty():
        click.echo(f"a question in each line; {_SHOW}FILE shows a picture, {_NEW} starts over, Ctrl-D ends", err=True)
    for line in _lines():
        try:
            if line == _NEW:
                chat.start_over()
            elif line.startswith(_SHOW):
                chat.show([line.removeprefix(_SHOW).strip()], max_pixels=max_pixels)
                pictures = [*pictures, line.removeprefix(_SHOW).strip()]
            else:
                _answer(chat, line, {"model": name, "pictures": pictures} if as_json else None, options)
        except ContextError as error:
            click.echo(f"Error: {error}; {_NEW} starts over", err=True)
        except (ValueError, OSError) as error:
            click.echo(f"Error: {error}", err=True)


def _answer(chat: Chat, question: str, known: dict[str, Any] | None, options: dict[str, Any]) -> Answer:
    from toklip_core.files import replace_lone_surrogates
    from transformers import TextStreamer

    question = replace_lone_surrogates(question)
    if known is None:
        return chat.ask(
            question,
            streamer=TextStreamer(chat.processor.tokenizer, skip_prompt=True, skip_special_tokens=True),
            **options,
        )
    answer = chat.ask(question, **options)
    figures = answer._asdict()
    figures.pop("image_ids")  # tensors are not JSON, and the text says where a picture is
    click.echo(json.dumps({**known, "question": question, "answer": figures.pop("text"), **figures}))
    return answer


def _lines() -> Iterator[str]:
    """What is typed, without empty lines, until the end of stdin; bytes that are no UTF-8 may be a file's name."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    while True:
        click.echo("> ", nl=False, err=True)
        try:
            line = input().strip()
        except EOFError:
            click.echo(err=True)
            return
        if line:
            yield line
