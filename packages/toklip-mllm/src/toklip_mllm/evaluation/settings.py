"""Settings of the questions that are asked during a training."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

from pydantic import Field, model_validator
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

    @model_validator(mode="after")
    def _prompt_has_the_question(self) -> Self:
        refuse_prompt(self.prompt)
        if self.root is not None and self.questions is None:
            raise ValueError("root has no effect without questions; leave it out")
        return self


def refuse_prompt(prompt: str) -> None:
    """Raise ValueError for a prompt without a place for the question."""
    if "{}" not in prompt:
        raise ValueError(f"got the prompt {prompt!r}; put {{}} where the question goes")
