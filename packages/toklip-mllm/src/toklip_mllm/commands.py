"""``toklip train mllm`` and ``toklip evaluate vqa``. Imports click only; the bodies import the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from toklip_core.options import COUNT, max_pixels, names_of_kind, names_or_files
from toklip_core.tasks import TrainTask, train_command

if TYPE_CHECKING:
    from toklip_core.training import FitReport

    from toklip_mllm.settings import MLLMTrainConfig


@train_command("mllm")
def train_mllm() -> TrainTask[MLLMTrainConfig]:
    """Train a language model that sees: RECIPE is a recipe's name or a TOML file.

    A connector brings the tokens of a frozen TokLIP into a language model; that is trained too, whole or by LoRA, if
    the settings say so. OUT/model is what `toklip ask --model` takes. Stopped by Ctrl-C, SIGTERM or SIGHUP it saves
    first, and exits with 130, 143 or 129; the same command goes on from there.
    """
    from toklip_mllm.settings import RECIPES, MLLMTrainConfig

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
    from toklip_core.encoding import default_device

    from toklip_mllm.questions import Keys
    from toklip_mllm.vqa import evaluate_vqa

    keys = Keys(image, question, answer, kind)
    report = evaluate_vqa(keys=keys, device=device or default_device(), progress=True, **options)
    click.echo(json.dumps(report.as_json(), indent=2) if as_json else report.as_text())
