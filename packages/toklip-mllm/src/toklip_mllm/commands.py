"""``toklip train mllm`` and ``toklip evaluate vqa``. Imports click only; the bodies import the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from toklip_core.cli import COUNT, TrainTask, max_pixels, names_of_kind, names_or_files, train_command

if TYPE_CHECKING:
    from toklip_core.training import FitReport

    from toklip_mllm.training import MLLMTrainConfig
import io
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from toklip_core.cli import SEED

if TYPE_CHECKING:
    from toklip_mllm.chat import Answer, Chat

@train_command("mllm")
def train_mllm() -> TrainTask[MLLMTrainConfig]:
    """Train a language model that sees: RECIPE is a recipe's name or a TOML file.

    A connector brings the tokens of a frozen TokLIP into a language model; that is trained too, whole or by LoRA, if
    the settings say so. OUT/model is what `toklip ask --model` takes. Stopped by Ctrl-C, SIGTERM or SIGHUP it saves
    first, and exits with 130, 143 or 129; the same command goes on from there.
    """
    from toklip_mllm.training import RECIPES, MLLMTrainConfig

    def train(config: MLLMTrainConfig, out: Path) -> FitReport:
        from toklip_mllm.training import train_mllm

        return train_mllm(config, out)

    return TrainTask(settings=MLLMTrainConfig, recipes=RECIPES, train=train)


@click.command("vqa")
@click.argument("questions", required=False, type=click.Path())
@click.option("--scenes", type=COUNT, help="Ask about so many scenes, without QUESTIONS.")
@click.option(
    "--split",
    type=click.Choice(["train", "validation", "held-out"]),
    default="held-out",
    show_default=True,
    help="Of the scenes.",
)
@click.option("--root", type=click.Path(), help="Where the pictures' paths start from; by default QUESTIONS's folder.")
@click.option("--image", default="image", show_default=True, help="Key of the picture's path in a row, or of a list.")
@click.option("--question", default="question", show_default=True, help="Key of the question.")
@click.option("--answer", default="answer", show_default=True, help="Key of the right answer, or of several people's.")
@click.option("--type", "kind", default="type", show_default=True, help="Key of the type; each type has its figure.")
@click.option(
    "--prompt",
    default="{}",
    show_default=True,
    help="What the model is asked, with {} where the question goes. Questions with choices have a prompt of their own.",
)
@click.option("--answers", type=click.Path(path_type=Path), help="Write what the model says to this JSONL file.")
@click.option(
    "--max-new-tokens", type=COUNT, default=32, show_default=True, help="Of an answer, at most."
)
@click.option(
    "--model",
    "name",
    default="toklip-mllm-tiny",
    show_default=True,
    shell_complete=names_or_files(names_of_kind("language model")),
    help="Or a folder, or owner/name.",
)
@max_pixels
@click.option(
    "--batch-size", type=COUNT, default=32, show_default=True, help="Questions at a time."
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Of the model; its VQ tokenizer stays in float32.",
)
@click.option("--device", help="Such as cpu or cuda:1; by default a GPU if there is one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def vqa(
    image: str, question: str, answer: str, kind: str, device: str | None, as_json: bool, **options: Any  # noqa: ANN401
) -> None:
    """Measure how well a model answers questions about pictures.

    QUESTIONS is a JSONL file, {"image": PATH, "question": TEXT, "answer": TEXT} in each line, optionally with "type"
    and "choices"; --scenes needs none. Exact match, accuracy of choices, VQA accuracy where several people answered,
    POPE's figures where the answer is yes or no, and the protocol.
    """
    from toklip_core.devices import default_device

    from toklip_mllm.evaluation import Keys, evaluate_vqa

    keys = Keys(image, question, answer, kind)
    report = evaluate_vqa(keys=keys, device=device or default_device(), progress=True, **options)
    click.echo(json.dumps(report.as_json(), indent=2) if as_json else report.as_text())


_SHOW, _NEW = "/picture ", "/new"


@click.command()
@click.argument("words", nargs=-1, metavar='PICTURE... ["QUESTION"]')
@click.option(
    "--model",
    "name",
    default="toklip-mllm-tiny",
    show_default=True,
    shell_complete=names_or_files(names_of_kind("language model")),
    help="Or a folder, or owner/name.",
)
@click.option(
    "--max-new-tokens", type=COUNT, default=256, show_default=True, help="Of an answer, at most."
)
@click.option(
    "--temperature",
    type=float,
    default=0.0,
    show_default=True,
    help="0 takes the likeliest token; above, tokens are drawn.",
)
@click.option(
    "--top-p",
    type=float,
    default=1.0,
    show_default=True,
    help="Draw among the likeliest tokens of this probability together.",
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of what is drawn.")
@max_pixels
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), help="Of the model; by default as it is stored.")
@click.option("--device", help="Such as cpu or cuda:1; by default a GPU if there is one.")
@click.option("--json", "as_json", is_flag=True, help="Print each answer as a line of JSON, for programs.")
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

    The answer goes to stdout as it comes. Without a question this is a conversation: each line that is typed is one,
    `/picture FILE` shows a further picture, and `/new` starts over with the pictures shown; end it with Ctrl-D.
    """
    from toklip_core.ranges import refuse_drawing

    refuse_drawing(temperature=options["temperature"], top_p=options["top_p"])
    from toklip_mllm.chat import pictures_and_question

    pictures, question = pictures_and_question(words)
    if sys.stderr.isatty():
        click.echo(f"loading {name}", err=True)

    import torch
    from toklip_core.devices import default_device, refuse_missing_device
    from transformers.utils import logging

    from toklip_mllm.chat import Chat
    from toklip_mllm.model import ContextError, load

    device = device or default_device()
    refuse_missing_device(device)
    logging.disable_progress_bar()
    torch.manual_seed(seed)
    model, processor = load(name, device=device, dtype=getattr(torch, dtype) if dtype else None)
    chat = Chat(model, processor)
    chat.show(pictures, max_pixels=max_pixels)
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
