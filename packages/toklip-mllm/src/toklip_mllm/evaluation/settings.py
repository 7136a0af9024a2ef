"""Settings of the questions that are asked during a training."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator
from toklip_core.config import Config


class HeldOutTalk(Config):
    """Held-out questions that a run is evaluated on, by exact match; none by default."""

    scenes: int = Field(default=0, ge=0, description="Number of held-out scenes, with all their questions.")
    questions: Path | None = Field(
        default=None,
        description='JSONL file of {"image": PATH, "question": ..., "answer": ...}, see `toklip evaluate vqa`.',
    )
    root: Path | None = Field(
        default=None, description="Folder that picture paths are relative to; by default that of the questions."
    )
    prompt: str = Field(default="{}", description="Prompt for the model; {} stands for the question.")

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if self.scenes and self.questions:
            raise ValueError("give scenes or questions, and not both")
        return self
