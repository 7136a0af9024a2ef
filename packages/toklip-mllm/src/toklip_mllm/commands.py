"""``toklip ask``, ``chat``, ``train mllm`` and ``evaluate vqa``. Imports click only; the bodies import the rest."""

from __future__ import annotations

import json
import os.path
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from toklip_core.cli import (
    COUNT,
    SEED,
    PathName,
    TrainTask,
    as_json,
    batch_size,
    compute_of,
    device,
    dtype,
    max_pixels,
    named_model,
    refuse_loose_words,
    refuse_unused,
    temperature,
    top_p,
    train_command,
)

from toklip_mllm.published import FOLDERS, TINY_NAME, UNIFIED_NAME

if TYPE_CHECKING:
    from PIL import Image
    from toklip_core.training import FitReport

    from toklip_mllm.model import TokLIPForConditionalGeneration, TokLIPProcessor
    from toklip_mllm.training import MLLMTrainConfig


def _model(default: str = TINY_NAME) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return named_model(
        "--model",
        "name",
        kind="language model",
        default=default,
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
@click.argument("questions", type=PathName())
@click.option(
    "--root",
    type=PathName(),
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
@click.option("--answers", type=PathName(path_type=Path), help="Also write the model's answers to this JSONL file.")
@click.option(
    "--max-new-tokens", type=COUNT, default=32, show_default=True, help="Maximum number of new tokens per answer."
)
@_model()
@max_pixels
@batch_size("questions answered at once")
@dtype("Dtype of the model; its VQ tokenizer stays in float32.")
@device
@as_json
@click.pass_context
def vqa(ctx: click.Context, /, as_json: bool, **options: Any) -> None:  # noqa: ANN401
    """Measure how well a model answers questions about pictures.

    QUESTIONS is a JSONL file with {"image": PATH, "question": TEXT, "answer": TEXT} in each line, optionally with
    "type" and "choices"; or scenes:SPLIT?count=N, generated scenes with all their questions. Reports exact match,
    multiple-choice accuracy, VQA accuracy (for answers from several people), POPE's metrics (for yes-or-no answers) and
    the protocol.
    """
    from toklip_core.scenes import parse_scenes

    from toklip_mllm.evaluation import Columns, evaluate_vqa

    if parse_scenes(options["questions"]) is not None:
        refuse_unused(ctx, ("root", *Columns._fields), "with scenes, which have no files")
    columns = Columns(*(options.pop(name) for name in Columns._fields))
    report = evaluate_vqa(columns=columns, compute=compute_of(options), **options)
    click.echo(json.dumps(report.as_json(), indent=2) if as_json else report.as_text())


def pictures_and_question(words: Sequence[str]) -> tuple[list[str], str]:
    """Return the picture files and the question of ``toklip ask``, which is the last word.

    Raises:
        FileNotFoundError: a picture looks like a word of a question that is not in quotes.
        ValueError: there is no picture or no question: the last word is a file, or named as one.
    """
    from toklip_core.pictures import PICTURE_SUFFIXES

    *pictures, last = words or ("",)
    # A question may be too long for a file's name, and may end like one: "what is in b.png".
    of_picture = last.startswith("scenes:") or Path(last).suffix.lower() in PICTURE_SUFFIXES
    if os.path.isfile(last) or (" " not in last and of_picture):  # noqa: PTH113 - Path raises for a very long text
        raise ValueError("got pictures and no question; ask one after them, or start a conversation with toklip chat")
    if not pictures:
        raise ValueError('got no picture; name one before the question: toklip ask PICTURE "QUESTION"')
    refuse_loose_words(pictures, 'toklip ask PICTURE "QUESTION"')
    if not last.strip():
        raise ValueError("the question is empty; ask something, or start a conversation with toklip chat")
    return pictures, last


_MAX_NEW_TOKENS = click.option(
    "--max-new-tokens",
    type=COUNT,
    default=256,
    show_default=True,
    help="Maximum number of new tokens per answer, without those of pictures.",
)
_DTYPE = dtype("Dtype of the model. [default: as stored]", default=None)


@click.command()
@click.argument("words", nargs=-1, metavar='PICTURE... "QUESTION"')
@_model()
@_MAX_NEW_TOKENS
@temperature(default=0.0)
@top_p
@click.option(
    "--seed", type=SEED, default=0, show_default=True, help="Seed of the sampling; without effect at temperature 0."
)
@max_pixels
@_DTYPE
@device
@click.option("--json", "as_json", is_flag=True, help="Print the answer as one line of JSON.")
@click.pass_context
def ask(
    ctx: click.Context,
    /,
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

    PICTURE is a file, or one scene such as scenes:held-out?count=1&seed=7. The answer is printed as it is generated.
    It is text only; in `toklip chat` a model can also draw and answer further questions.
    """
    from toklip_core.config import LEAST_TEMPERATURE, refuse_drawing

    refuse_drawing(temperature=options["temperature"], top_p=options["top_p"])
    if options["temperature"] < LEAST_TEMPERATURE:
        why = "at temperature 0, which always takes the most likely token"
        refuse_unused(ctx, ("top_p",), why, instead="give a higher --temperature")
    from toklip_mllm.model import read_picture

    pictures, question = pictures_and_question(words)
    # Read first, because a model takes seconds to load.
    shown = [read_picture(picture, number, max_pixels=max_pixels) for number, picture in enumerate(pictures, 1)]
    model, processor = _loaded(name, dtype, device, seed)
    from toklip_core.evaluation import warn_of_other_pictures

    from toklip_mllm.chat import Chat, ChatSettings

    if name in FOLDERS:
        sizes = [picture.size for picture in shown]
        warn_of_other_pictures(name, zip(pictures, sizes, strict=True), side=model.config.image_size)
    chat = Chat(model, processor, ChatSettings(**options, draws=False))
    if as_json:
        from toklip_core.files import replace_lone_surrogates

        known = {"model": name, "pictures": pictures, "question": replace_lone_surrogates(question)}
        click.echo(json.dumps(known | chat.ask(question, shown).as_json()))
        return
    begun = False
    try:
        for piece in chat.say(question, shown):
            text = str(piece) if begun else str(piece).lstrip()
            click.echo(text, nl=False)
            begun = begun or bool(text)
    finally:
        if begun:
            click.echo()


@click.command()
@click.argument("pictures", nargs=-1)
@_model(UNIFIED_NAME)
@click.option(
    "--out",
    type=PathName(path_type=Path, file_okay=False),
    default=Path(),
    help="Folder for drawn pictures, which are numbered; existing files are never overwritten.",
)
@click.option(
    "--seed",
    type=SEED,
    default=0,
    show_default=True,
    help="Seed of the first picture that is drawn, and of sampled words; each further picture adds one.",
)
@click.option(
    "--guidance",
    type=float,
    help="Classifier-free guidance scale of pictures; 1 turns it off. [default: the model's own]",
)
@click.option(
    "--picture-temperature",
    type=float,
    default=1.0,
    show_default=True,
    help="Sampling temperature of pictures; 0 always takes the most likely id (greedy).",
)
@click.option(
    "--temperature",
    type=float,
    default=0.0,
    show_default=True,
    help="Sampling temperature of words; 0 always takes the most likely token (greedy).",
)
@_MAX_NEW_TOKENS
@max_pixels
@_DTYPE
@device
@click.option("--json", "as_json", is_flag=True, help="Print each answer as one line of JSON.")
@click.pass_context
def chat(
    ctx: click.Context,
    /,
    pictures: tuple[str, ...],
    name: str,
    out: Path,
    seed: int,
    guidance: float | None,
    picture_temperature: float,
    temperature: float,
    max_new_tokens: int,
    max_pixels: int,
    dtype: str | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Talk with a language model about pictures, which it also draws if it has an image head.

    Each line you type is a message, such as "draw a red circle" or "what colour is it?". PICTURES, which are files or
    single scenes such as scenes:held-out?count=1&seed=7, are shown with the first message; `/image PATH` shows another
    one with the next message, `/clear` starts over, `/help` lists the commands, and `/exit` or Ctrl-D ends the
    conversation. Ctrl-C ends an answer. A drawn picture is written to a file, whose name is printed.

    The messages may also come from a pipe. Then stdout has the whole conversation, a message in each line that begins
    with "> ", or with --json one object for each message. If one was refused, the exit status is 1.
    """
    from toklip_core.config import refuse_temperatures

    refuse_temperatures(picture_temperature=picture_temperature, temperature=temperature)
    from toklip_core.drawing import Drawing, Guidance

    drawing = Drawing(None if guidance is None else Guidance(guidance), temperature=picture_temperature)
    from toklip_mllm.model import read_picture

    # Read first, because a model takes seconds to load.
    shown = [(file, read_picture(file, number, max_pixels=max_pixels)) for number, file in enumerate(pictures, 1)]
    model, processor = _loaded(name, dtype, device, seed)
    if model.image_head is None:
        refuse_unused(ctx, ("out", "guidance", "picture_temperature"), f"with {name}, which has no image head")
    from toklip_core.evaluation import warn_of_other_pictures

    from toklip_mllm.chat import Chat, ChatSettings
    from toklip_mllm.terminal import Terminal, typed_lines

    def look_at(pictures: Sequence[tuple[str, Image.Image]]) -> None:
        if name in FOLDERS:
            sizes = [(file, picture.size) for file, picture in pictures]
            warn_of_other_pictures(name, sizes, side=model.config.image_size)

    look_at(shown)
    settings = ChatSettings(max_new_tokens, temperature, drawing=drawing, seed=seed)
    conversation, interactive = Chat(model, processor, settings), _is_typed()
    terminal = Terminal(
        conversation,
        out,
        shown,
        known={"model": name} if as_json else None,
        interactive=interactive,
        max_pixels=max_pixels,
        look_at=look_at,
    )
    if not conversation.draws:
        click.echo(f"{name} has no image head, so it talks about pictures and cannot draw any", err=True)
    if interactive:
        click.echo("a message in each line; /help lists the commands, Ctrl-D ends the conversation", err=True)
    if terminal.run(typed_lines(interactive=interactive)) and not interactive:
        ctx.exit(1)


def _is_typed() -> bool:
    """Return whether somebody types the input."""
    return sys.stdin.isatty()


def _loaded(
    name: str, dtype: str | None, device: str | None, seed: int
) -> tuple[TokLIPForConditionalGeneration, TokLIPProcessor]:
    """Return a model and its processor, on a device, and set the seed of sampled words."""
    if sys.stderr.isatty():
        click.echo(f"loading {name}", err=True)
    import torch
    from toklip_core.config import default_device, refuse_missing_device
    from transformers.utils import logging

    from toklip_mllm.model import load_language_model

    device = device or default_device()
    refuse_missing_device(device)
    logging.disable_progress_bar()
    torch.manual_seed(seed)
    return load_language_model(name, device=device, dtype=getattr(torch, dtype) if dtype else None)
