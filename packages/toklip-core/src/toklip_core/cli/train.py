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
    """Train a semantic encoder.

    RECIPE is the name of a recipe or a TOML file. The encoder is initialised from the vision tower of a teacher, reads
    the codes of a frozen VQ tokenizer, and is trained on captions and on the teacher's features. The result, OUT/model,
    is a TokLIP. On Ctrl-C, SIGTERM or SIGHUP the run saves a checkpoint and exits with status 130, 143 or 129; run the
    same command again to resume.
    """
    from toklip_core.tasks import ENCODER_RECIPES, EncoderTrainConfig

    def train(config: EncoderTrainConfig, out: Path) -> FitReport:
        from toklip_core.tasks import train_encoder

        return train_encoder(config, out)

    return TrainTask(settings=EncoderTrainConfig, recipes=ENCODER_RECIPES, train=train)


@train_command("teacher")
def teacher() -> TrainTask[TeacherTrainConfig]:
    """Train a small teacher, a CLIP on pixels, from scratch.

    Use it where no published teacher can be downloaded. RECIPE is the name of a recipe or a TOML file. Pass the result,
    OUT/model, as the setting `teacher` of `toklip train encoder`. On Ctrl-C, SIGTERM or SIGHUP the run saves a
    checkpoint and exits with status 130, 143 or 129; run the same command again to resume.
    """
    from toklip_core.tasks import TEACHER_RECIPES, TeacherTrainConfig

    def train(config: TeacherTrainConfig, out: Path) -> FitReport:
        from toklip_core.tasks import train_teacher

        return train_teacher(config, out)

    return TrainTask(settings=TeacherTrainConfig, recipes=TEACHER_RECIPES, train=train)
