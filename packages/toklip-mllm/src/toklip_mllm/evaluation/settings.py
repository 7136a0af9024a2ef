"""Settings of the questions that are asked during a training."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field
from toklip_core.config import HeldOut


class HeldOutQuestions(HeldOut):
    """Held-out questions, evaluated by exact match: all questions of scenes, or a file of your own."""

    own: ClassVar[tuple[str, ...]] = ("questions",)

    questions: Path | None = Field(
        default=None,
        description='JSONL file of {"image": PATH, "question": ..., "answer": ...}, see `toklip evaluate vqa`.',
    )
    root: Path | None = Field(
        default=None, description="Folder that picture paths are relative to; by default that of the questions."
    )
    prompt: str = Field(default="{}", description="Prompt for the model; {} stands for the question.")
