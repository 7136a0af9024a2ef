"""``toklip train vq``. Imports click only; the body imports the rest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from toklip_core.cli import TrainTask, train_command

if TYPE_CHECKING:
    from toklip_core.training import FitReport

    from toklip_vq.training import VQTrainConfig


@train_command("vq")
def train_vq() -> TrainTask[VQTrainConfig]:
    """Train a VQ tokenizer.

    RECIPE is the name of a recipe or a TOML file. The result is OUT/model. On Ctrl-C, SIGTERM or SIGHUP the run saves a
    checkpoint and exits with status 130, 143 or 129; run the same command again to resume.
    """
    from toklip_vq.training import RECIPES, VQTrainConfig

    def train(config: VQTrainConfig, out: Path) -> FitReport:
        from toklip_vq.training import train_vq

        return train_vq(config, out)

    return TrainTask(settings=VQTrainConfig, recipes=RECIPES, train=train)
