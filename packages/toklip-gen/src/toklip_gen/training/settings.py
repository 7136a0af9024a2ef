"""The settings of ``toklip train generator FILE.toml``: what is read, what is drawn, data and run."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from toklip_core.captioned import CaptionedDataset, CaptionedPictures, CaptionedScenes, CaptionedTable
from toklip_core.config import Config, RunConfig
from toklip_core.ranges import LARGEST_MAX_PIXELS, MAX_PIXELS

from toklip_gen.generator import SIZES, ClassCondition, ConditionKeys, Features, Size

#: The shipped settings, NAME.toml each; the first line of each is a comment that says what it is.
RECIPES = files("toklip_gen") / "recipes"


class StoredIds(Config):
    """A token store. A row has the class of its folder below what all keys share (FOLDER/CLASS/...), or its caption."""

    kind: Literal["store"]
    store: Path = Field(description="What `toklip encode` wrote.")
    crops: bool = Field(
        default=True,
        description="Draw one of the 20 views with each visit, if the store has them (`toklip encode --augment "
        "ten-crop`); with captions one of the 10 that are not mirrored. false: the whole square.",
    )


class ClassFolders(Config):
    """FOLDER/CLASS/PICTURE: one random crop of each picture in an epoch, encoded as it comes."""

    kind: Literal["classes"]
    folder: Path = Field(description="With a folder for each class; they are counted in the order of their names.")
    smallest_crop: float = Field(
        default=0.8, gt=0, le=1, description="The side of a crop: from this share of the short side to all of it."
    )
    flip: bool = Field(default=True, description="Mirror half of the crops.")
    max_pixels: int = Field(
        default=MAX_PIXELS,
        gt=0,
        le=LARGEST_MAX_PIXELS,
        description="Width times height above which a picture is not read, and left out.",
    )


Source = Annotated[
    CaptionedScenes | CaptionedPictures | CaptionedTable | CaptionedDataset | StoredIds | ClassFolders,
    Field(discriminator="kind"),
]


class TextSetting(Config):
    """Texts, by a text encoder; its width is found out."""

    kind: Literal["text"]
    encoder: str = Field(
        default="toklip", description="toklip: the text tower of the TokLIP. Else a T5 of transformers, a name or path."
    )
    length: int = Field(gt=0, description="T: words, or tokens, of a text; longer ones are cut.")


class Architecture(Config):
    """Sizes of the transformer, and what it reads."""

    size: Literal["B", "L", "XL", "XXL", "XXXL", "1B", "3B", "7B"] | None = Field(
        default=None, description="One of LlamaGen's, in place of width, depth and heads."
    )
    width: int = Field(default=0, ge=0, description="W.")
    depth: int = Field(default=0, ge=0, description="Blocks.")
    heads: int = Field(default=0, ge=0, description="Attention heads, which divide the width.")
    kv_heads: int | None = Field(default=None, gt=0, description="Heads of keys and values; as many as heads.")
    hidden_width: int | None = Field(
        default=None, gt=0, description="Of the SwiGLU; 8 W / 3, up to a multiple of 256, by default."
    )
    features: Features = Field(
        default="ids", description="What is read of the last id: ids, codes, or concat (code and semantic token)."
    )
    condition_keys: ConditionKeys = Field(
        default="zero",
        description="zero: all words of a text are seen alike, as LlamaGen was trained; learned: a position can choose "
        "among them.",
    )
    grad_checkpointing: bool = Field(default=False, description="Less memory for activations, one more forward pass.")

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        given = {name for name in ("width", "depth", "heads") if getattr(self, name)}
        if len(given) != (0 if self.size else 3):
            raise ValueError("give a size, or width, depth and heads")
        return self

    @property
    def sizes(self) -> Size:
        """Width, depth and heads."""
        return SIZES[self.size] if self.size else Size(self.width, self.depth, self.heads)


class Sketches(Config):
    """What a run is evaluated on, and the pictures that it draws for tensorboard."""

    scenes: int = Field(
        default=0,
        ge=0,
        description="Held-out scenes for the loss, one class of each, or one caption; these are on plain backgrounds.",
    )
    store: Path | None = Field(default=None, description="Or a token store, of other pictures than the training's.")
    pictures: int = Field(default=1024, gt=0, description="Rows of that store, at most, evenly chosen.")
    prompts: tuple[int | str, ...] = Field(
        default=(), description="Classes or texts that are drawn at each evaluation; of scenes the first 16 by default."
    )
    guidance: float = Field(
        default=4.0, ge=0, description="Of these drawings, and of the model's if nothing else is asked for; 1 is none."
    )
    top_k: int = Field(default=0, ge=0, description="Likewise: likeliest ids to draw from; 0: all.")

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if self.scenes and self.store:
            raise ValueError("give scenes or a store, and not both")
        return self


class GeneratorTrainConfig(Config):
    """`toklip train generator FILE.toml`."""

    tokenizer: str | None = Field(
        default=None, description="Name of the VQ tokenizer; by default the TokLIP's own. It stays frozen."
    )
    tokenizer_weights: Path | None = Field(default=None, description="A file or folder of it, in place of its own.")
    toklip: str | None = Field(
        default=None, description="TokLIP of features = 'concat' and of the text encoder toklip: a name or a folder."
    )
    image_size: int = Field(gt=0, description="Side of the pictures, a multiple of the tokenizer's factor.")
    resize: Literal["crop", "squash"] = Field(default="crop", description="How a picture becomes a square.")
    generator: Architecture
    condition: Annotated[ClassCondition | TextSetting, Field(discriminator="kind")]
    condition_dropout: float = Field(
        default=0.1, ge=0, lt=1, description="Share of samples without their condition, which guidance needs."
    )
    dropout: float = Field(default=0.1, ge=0, lt=1, description="Of embeddings, and of each half of a block.")
    data: tuple[Source, ...] = Field(min_length=1, description="One after another; token stores, or pictures.")
    held_out: Sketches = Sketches()
    run: RunConfig

    @model_validator(mode="after")
    def _toklip_where_it_is_read(self) -> Self:
        reads = self.generator.features == "concat" or (
            isinstance(self.condition, TextSetting) and self.condition.encoder == "toklip"
        )
        if reads and self.toklip is None:
            raise ValueError("features = 'concat' and the text encoder toklip read a TokLIP: set toklip")
        if self.toklip is not None and not reads:
            raise ValueError("toklip is read by features = 'concat' or the text encoder toklip alone; leave it out")
        if self.tokenizer is None and (self.toklip is None or self.tokenizer_weights is not None):
            raise ValueError("name the tokenizer")
        return self

    @model_validator(mode="after")
    def _data_have_the_condition(self) -> Self:
        stores = [isinstance(source, StoredIds) for source in self.data]
        if any(stores) and not all(stores):
            raise ValueError("data are token stores or pictures, and not both: encode all of them, or none")
        of_class = isinstance(self.condition, ClassCondition)
        for source in self.data:
            if of_class and not (
                isinstance(source, StoredIds | ClassFolders) or (source.kind == "scenes" and source.objects == 1)
            ):
                raise ValueError(
                    f"data of the kind {source.kind!r} have no class; take classes, a store, or scenes with objects = 1"
                )
            if not of_class and isinstance(source, ClassFolders):
                raise ValueError("data of the kind 'classes' have no captions; take another kind, or a class condition")
        return self
