"""Settings of the questions that are asked during a training."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field
from toklip_core.config import HeldOut


class HeldOutQuestions(HeldOut):
    """Held-out questions, evaluated by exact match: all questions about scenes, or your own file."""

    own: ClassVar[tuple[str, ...]] = ("questions",)

    questions: Path | None = Field(
        default=None,
        description='JSONL file of {"image": PATH, "question": ..., "answer": ...}, as for `toklip evaluate vqa`.',
    )
    root: Path | None = Field(
        default=None, description="Folder that the picture paths are relative to; by default the folder of questions."
    )
    prompt: str = Field(default="{}", description="Prompt for the model; {} stands for the question.")
