"""``toklip train encoder`` and ``toklip train teacher``. Imports click only; the bodies import the rest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from toklip_core.cli.task import TrainTask, train_command

if TYPE_CHECKING:
    from toklip_core.tasks import EncoderTrainConfig, TeacherTrainConfig
    from toklip_core.training import FitReport


@train_command("encoder")
def encoder() -> TrainTask[EncoderTrainConfig]:
    """Train a semantic encoder: RECIPE is a recipe's name or a TOML file.

    It starts from the vision tower of a teacher, reads the codes of a frozen VQ tokenizer, and learns from captions and
    from the teacher. OUT/model is a TokLIP. Stopped by Ctrl-C, SIGTERM or SIGHUP it saves first, and exits with
    130, 143 or 129; the same command goes on from there.
    """
    from toklip_core.tasks import ENCODER_RECIPES, EncoderTrainConfig

    def train(config: EncoderTrainConfig, out: Path) -> FitReport:
        from toklip_core.tasks import train_encoder

        return train_encoder(config, out)

    return TrainTask(settings=EncoderTrainConfig, recipes=ENCODER_RECIPES, train=train)


@train_command("teacher")
def teacher() -> TrainTask[TeacherTrainConfig]:
    """Train a small CLIP on pixels, from nothing: a teacher where none can be downloaded.

    RECIPE is a recipe's name or a TOML file. OUT/model is what the setting `teacher` of `toklip train encoder` takes.
    Stopped, it goes on as `toklip train encoder` does.
    """
    from toklip_core.tasks import TEACHER_RECIPES, TeacherTrainConfig

    def train(config: TeacherTrainConfig, out: Path) -> FitReport:
        from toklip_core.tasks import train_teacher

        return train_teacher(config, out)

    return TrainTask(settings=TeacherTrainConfig, recipes=TEACHER_RECIPES, train=train)
