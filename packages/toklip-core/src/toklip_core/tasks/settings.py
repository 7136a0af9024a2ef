"""The settings of ``toklip train encoder FILE.toml`` and ``toklip train teacher FILE.toml``."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from toklip_core.captioned import CaptionSource
from toklip_core.config import Config, RunConfig
from toklip_core.model import VisionConfig

_RECIPES = files("toklip_core") / "recipes"
#: The shipped settings, NAME.toml each; the first line of each is a comment that says what it is.
ENCODER_RECIPES = _RECIPES / "encoder"
TEACHER_RECIPES = _RECIPES / "teacher"


class EncoderLosses(Config):
    """What the encoder is trained by: texts, and a teacher. A weight of 0 leaves a loss out."""

    contrast: Literal["softmax", "sigmoid"] = Field(default="softmax", description="CLIP's loss, or SigLIP's.")
    contrast_weight: float = Field(default=1.0, ge=0, description="Of the contrast with the captions.")
    pooled_weight: float = Field(
        default=1000.0,
        ge=0,
        description="Of the mean squared error between unit features of encoder and teacher: 2 (1 - cos) / D each, so "
        "1000 weighs 1 - cos by 1.74 at D = 1152.",
    )
    token_weight: float = Field(
        default=0.0, ge=0, description="Of the mean squared error between tokens of encoder and teacher; needs pixels."
    )

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if not (self.contrast_weight or self.pooled_weight or self.token_weight):
            raise ValueError("all weights are 0; give one of the losses a weight")
        return self


class HeldOut(Config):
    """What a run is evaluated on: scenes, or pictures of one's own; nothing by default."""

    scenes: int = Field(
        default=0, ge=0, description="Held-out scenes: so many of one object for zero-shot, so many for retrieval."
    )
    classes: Path | None = Field(
        default=None, description="FOLDER/CLASS/PICTURE, for zero-shot accuracy by `a photo of a CLASS.` alone."
    )
    imagenet: bool = Field(default=False, description="The classes are ImageNet's 1000, with open_clip's names.")
    captions: Path | None = Field(
        default=None, description='JSONL of {"image": PATH, "captions": [...]}, for retrieval.'
    )

    @model_validator(mode="after")
    def _scenes_or_pictures(self) -> Self:
        if self.scenes and (self.classes or self.captions):
            raise ValueError("give scenes, or classes and captions, and not both")
        if self.imagenet and not self.classes:
            raise ValueError("imagenet says what the classes are; give their folder, classes, too")
        return self


def _refuse_nothing_to_contrast(contrast: str, run: RunConfig) -> None:
    """ValueError if a softmax is over one pair, whose loss is 0 whatever is learnt."""
    if contrast == "softmax" and run.batch_size == 1:
        raise ValueError(
            "with run.batch_size 1 there is no other pair to contrast with, and the loss of softmax is always 0; take "
            "2 or more, or the contrast 'sigmoid'"
        )


class EncoderTrainConfig(Config):
    """A semantic encoder over the codes of a VQ tokenizer, started from a teacher's vision tower."""

    tokenizer: str = Field(description="Name of the VQ tokenizer in the registry; it stays frozen.")
    tokenizer_weights: Path | None = Field(default=None, description="A file or folder of it, in place of its own.")
    teacher: str = Field(
        description="A folder that `toklip train teacher` wrote, or open_clip:NAME/TAG; text tower, initial values, "
        "and what is distilled. It stays frozen."
    )
    image_size: int = Field(gt=0, description="Side of the pictures, a multiple of the tokenizer's factor.")
    resize: Literal["crop", "squash"] = Field(default="crop", description="How a picture becomes a square.")
    smallest_crop: float = Field(
        default=1.0, gt=0, le=1, description="Below 1, crops of a share of the area from this to 1, as TokLIP's 0.9."
    )
    data: tuple[CaptionSource, ...] = Field(min_length=1, description="One after another.")
    initial_values: Literal["teacher", "random"] = Field(
        default="teacher", description="Of the encoder: the teacher's vision tower, or chance."
    )
    causal: bool = Field(
        default=True, description="A token sees its own code and those before it; false: all codes, and no generator "
        "can read the result."
    )
    losses: EncoderLosses = EncoderLosses()
    held_out: HeldOut = HeldOut()
    text_cache: int = Field(
        default=1_000_000,
        ge=0,
        description="Data that are token stores or tables, and have up to so many distinct captions: the text tower "
        "reads each of them once, before the first step, and the features are kept, 4 bytes a dimension. Other "
        "captions are read with their batch.",
    )
    grad_checkpointing: bool = Field(
        default=False, description="Less memory for activations, one more forward pass."
    )
    projector_learning_rate_factor: float = Field(
        default=1.0, gt=0, description="Of the only part that starts from nothing, times the learning rate."
    )
    run: RunConfig

    @model_validator(mode="after")
    def _pairs_are_contrasted(self) -> Self:
        if self.losses.contrast_weight:
            _refuse_nothing_to_contrast(self.losses.contrast, self.run)
        return self


class TeacherText(Config):
    """The text tower of a teacher that is trained from nothing; its words are those of the data."""

    width: int = Field(gt=0, description="Width of a token.")
    heads: int = Field(gt=0, description="Attention heads, which divide the width.")
    layers: int = Field(gt=0, description="Blocks.")
    context_length: int = Field(gt=1, description="Words of a caption, and the end; longer ones are cut.")
    captions: int = Field(
        default=20_000, gt=0, description="Captions, from all over the data, whose words are its vocabulary."
    )

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be a multiple of heads ({self.heads})")
        return self


class TeacherTrainConfig(Config):
    """A small CLIP on pixels, from nothing: a teacher where none can be downloaded."""

    image_size: int = Field(gt=0, description="Side of the pictures, a multiple of the patch.")
    resize: Literal["crop", "squash"] = Field(default="crop", description="How a picture becomes a square.")
    smallest_crop: float = Field(default=1.0, gt=0, le=1, description="As for the encoder.")
    vision: VisionConfig
    text: TeacherText
    contrast: Literal["softmax", "sigmoid"] = Field(default="softmax", description="CLIP's loss, or SigLIP's.")
    data: tuple[CaptionSource, ...] = Field(min_length=1, description="One after another; pixels, no stores.")
    held_out: HeldOut = HeldOut()
    run: RunConfig

    @model_validator(mode="after")
    def _patches_fit(self) -> Self:
        if self.image_size % self.vision.patch_size:
            raise ValueError(
                f"image_size ({self.image_size}) must be a multiple of vision.patch_size ({self.vision.patch_size})"
            )
        return self

    @model_validator(mode="after")
    def _pairs_are_contrasted(self) -> Self:
        _refuse_nothing_to_contrast(self.contrast, self.run)
        return self
