"""The settings of ``toklip train encoder FILE.toml`` and ``toklip train teacher FILE.toml``."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from toklip_core.captioned import CaptionSource
from toklip_core.config import (
    LARGEST_SIDE,
    LARGEST_WIDTH,
    MOST_LAYERS,
    Config,
    HeldOut,
    ResizeSetting,
    RunConfig,
    changed_alone,
    refuse_without_effect,
)
from toklip_core.model import MOST_NEIGHBOURS, VisionConfig

_RECIPES = files("toklip_core") / "recipes"
#: Folder of the shipped recipes NAME.toml; the first line of each is a comment that summarises it.
ENCODER_RECIPES = _RECIPES / "encoder"
TEACHER_RECIPES = _RECIPES / "teacher"


class EncoderLosses(Config):
    """Losses of the encoder: contrast with captions, distillation from the teacher. A weight of 0 turns a loss off."""

    contrast: Literal["softmax", "sigmoid"] = Field(
        default="softmax", description="Contrastive loss: softmax as in CLIP, sigmoid as in SigLIP."
    )
    contrast_weight: float = Field(default=1.0, ge=0, description="Weight of the contrastive loss.")
    pooled_weight: float = Field(
        default=1000.0,
        ge=0,
        description="Weight of the mean squared error between the unit-norm pooled features of encoder and teacher. It "
        "equals 2 (1 - cos) / D, so 1000 puts a weight of 1.74 on 1 - cos at D = 1152.",
    )
    token_weight: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the mean squared error between the tokens of encoder and teacher; needs data with "
        "pixels.",
    )

    @model_validator(mode="after")
    def _something_to_learn(self, info: ValidationInfo) -> Self:
        if not (self.contrast_weight or self.pooled_weight or self.token_weight):
            raise ValueError("all weights are 0; give one of the losses a weight")
        if not self.contrast_weight:
            names = changed_alone(info, ("contrast",), "losses.contrast_weight", inside="losses.")
            refuse_without_effect(self, names, "with contrast_weight 0", instead="set a weight")
        return self


class HeldOutPictures(HeldOut):
    """Held-out data for encoders and teachers: scenes, or a folder of classes and a file of captioned pictures.

    ``scenes = N`` takes N scenes of one object for zero-shot accuracy, and N others for retrieval.
    """

    own: ClassVar[tuple[str, ...]] = ("classes", "captions")

    classes: Path | None = Field(
        default=None,
        description="Folder with one folder of pictures per class, for zero-shot accuracy with the single template "
        "`a photo of a {}.`; or scenes:SPLIT?objects=1, whose classes are named as they are.",
    )
    imagenet: bool = Field(
        default=False, description="Read `classes` as ImageNet's 1000 classes, with open_clip's class names."
    )
    captions: Path | None = Field(
        default=None,
        description='JSONL file of {"image": PATH, "captions": [...]} rows, for retrieval; or the split val of '
        "Karpathy's dataset_coco.json; or scenes:SPLIT?count=N. Paths are relative to the folder of the file.",
    )

    @model_validator(mode="after")
    def _imagenet_has_a_folder(self) -> Self:
        if self.imagenet and not self.classes:
            raise ValueError("imagenet says what the classes are; give their folder, classes, too")
        return self


def _refuse_nothing_to_contrast(contrast: str, run: RunConfig) -> None:
    """Raise ValueError for a softmax contrast over a single pair, whose loss is always 0."""
    if contrast == "softmax" and run.batch_size == 1:
        raise ValueError(
            "with run.batch_size 1 there is no other pair to contrast with, and the loss of softmax is always 0; take "
            "2 or more, or the contrast 'sigmoid'"
        )


class EncoderTrainConfig(Config):
    """Settings of `toklip train encoder`: a semantic encoder over the codes of a VQ tokenizer."""

    tokenizer: str = Field(description="Name of the VQ tokenizer, as `toklip tokenizers` lists it; it stays frozen.")
    tokenizer_weights: Path | None = Field(
        default=None, description="Tokenizer weights, a file or a folder; by default the tokenizer's own."
    )
    teacher: str = Field(
        description="Teacher: clip-tiny, a folder that `toklip train teacher` wrote, or open_clip:NAME/TAG. It stays "
        "frozen, and provides the text tower, the initial weights and the features to distil."
    )
    image_size: int = Field(
        gt=0,
        le=LARGEST_SIDE,
        description="Side of the pictures in pixels, one that the tokenizer takes: mostly a multiple of its "
        "downsampling factor; some take a single size.",
    )
    resize: ResizeSetting = "crop"
    smallest_crop_area: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Smallest share of the picture's area in a random crop; 1 turns cropping off. TokLIP used 0.9.",
    )
    data: tuple[CaptionSource, ...] = Field(
        min_length=1, description="Training data; an epoch is one pass over all sources."
    )
    initial_values: Literal["teacher", "random"] = Field(
        default="teacher", description="Initial weights of the encoder: those of the teacher's vision tower, or random."
    )
    causal: bool = Field(
        default=True,
        description="Causal attention: each token sees its own code and those before it. false lets each token see all "
        "codes, and then no generator can use the model.",
    )
    neighbours: int = Field(
        default=0,
        ge=0,
        le=MOST_NEIGHBOURS,
        description="Number of rows up, and of columns to either side, from which the projector reads codes of "
        "neighbours; 0, as in TokLIP: the code of the position alone. A small encoder learns shapes sooner with 1.",
    )
    projector_pictures: int = Field(
        default=0,
        ge=0,
        description="Number of training pictures on which the projector is fitted to the teacher's embedded patches "
        "before the first step; 0, as in TokLIP: it starts with random values. A small encoder then learns shapes "
        "sooner; the teacher's patches must have the same grid as the tokenizer's codes.",
    )
    losses: EncoderLosses = EncoderLosses()
    held_out: HeldOutPictures = HeldOutPictures()
    text_cache: int = Field(
        default=1_000_000,
        ge=0,
        description="Largest number of distinct captions whose text features are computed once, before the first step, "
        "and kept in memory (4 bytes per dimension). Applies to token stores and tables; the text tower encodes all "
        "other captions batch by batch.",
    )
    grad_checkpointing: bool = Field(
        default=False,
        description="Recompute activations in the backward pass, which saves memory and costs one more forward pass.",
    )
    projector_learning_rate_factor: float = Field(
        default=1.0,
        gt=0,
        description="Factor on the learning rate of the projector, the only module that is trained from scratch.",
    )
    run: RunConfig

    @model_validator(mode="after")
    def _fitted_to_what_is_taken(self) -> Self:
        if self.projector_pictures and self.initial_values == "random":
            raise ValueError("projector_pictures fits the projector to the teacher, and initial_values leaves that out")
        return self

    @model_validator(mode="after")
    def _pairs_are_contrasted(self) -> Self:
        if self.losses.contrast_weight:
            _refuse_nothing_to_contrast(self.losses.contrast, self.run)
        return self


class TeacherText(Config):
    """The text tower of a teacher trained from scratch; its vocabulary is taken from the training captions."""

    width: int = Field(gt=0, le=LARGEST_WIDTH, description="Width of a token embedding.")
    heads: int = Field(gt=0, le=LARGEST_WIDTH, description="Number of attention heads; must divide the width.")
    layers: int = Field(gt=0, le=MOST_LAYERS, description="Number of transformer blocks.")
    context_length: int = Field(
        gt=1,
        le=LARGEST_WIDTH,
        description="Maximum number of words per caption, plus the end token; longer captions are cut.",
    )
    captions: int = Field(
        default=20_000,
        gt=0,
        description="Number of captions, sampled across all data, whose words form the vocabulary.",
    )

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be a multiple of heads ({self.heads})")
        return self


class TeacherTrainConfig(Config):
    """Settings of `toklip train teacher`: a small CLIP on pixels, trained from scratch."""

    image_size: int = Field(
        gt=0, le=LARGEST_SIDE, description="Side of the pictures in pixels, a multiple of the patch size."
    )
    resize: ResizeSetting = "crop"
    smallest_crop_area: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Smallest share of the picture's area in a random crop; 1 turns cropping off.",
    )
    vision: VisionConfig
    text: TeacherText
    contrast: Literal["softmax", "sigmoid"] = Field(
        default="softmax", description="Contrastive loss: softmax as in CLIP, sigmoid as in SigLIP."
    )
    data: tuple[CaptionSource, ...] = Field(
        min_length=1,
        description="Training data with pictures, so no token stores; an epoch is one pass over all sources.",
    )
    held_out: HeldOutPictures = HeldOutPictures()
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
