"""Settings of the questions that are asked during a training."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator
from toklip_core.config import Config


class HeldOutTalk(Config):
    """What a run is evaluated on, by exact match; nothing by default."""

    scenes: int = Field(default=0, ge=0, description="Held-out scenes, with all their questions.")
    questions: Path | None = Field(
        default=None, description='JSONL of {"image": PATH, "question": ..., "answer": ...}, see `toklip evaluate vqa`.'
    )
    root: Path | None = Field(default=None, description="Where its pictures' paths start; by default its own folder.")
    prompt: str = Field(default="{}", description="What the model is asked, with {} where the question goes.")

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if self.scenes and self.questions:
            raise ValueError("give scenes or questions, and not both")
        return self
