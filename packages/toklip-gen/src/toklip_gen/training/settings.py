"""The settings of ``toklip train generator FILE.toml``: what is read, what is drawn, data and run."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator
from toklip_core.captioned import CaptionedDataset, CaptionedPictures, CaptionedScenes, CaptionedTable
from toklip_core.config import (
    LARGEST_COUNT,
    LARGEST_SIDE,
    LARGEST_WIDTH,
    MAX_PIXELS,
    MOST_LAYERS,
    Config,
    HeldOut,
    MaxPixels,
    ResizeSetting,
    RunConfig,
)
from toklip_core.drawing import Drawing, Guidance

from toklip_gen.generator import (
    MOST_NEIGHBOURS,
    OF_TOKLIP,
    SIZES,
    ClassCondition,
    ConditionKeys,
    Features,
    Size,
    refuse_heads,
)

#: Folder of the shipped recipes NAME.toml; the first line of each is a comment that summarises it.
RECIPES = files("toklip_gen") / "recipes"


class StoredIds(Config):
    """Token store. The class of a row is the first folder below the path that all keys share (FOLDER/CLASS/...).

    A tar does not count as a folder: its pictures belong to the folder that contains the tar. If all pictures are of
    one class, encode them from a folder without subfolders: a store of only cat/train and cat/val has the classes train
    and val. With a text condition, the row's caption is read instead of the class.
    """

    kind: Literal["store"]
    store: Path = Field(description="Folder that `toklip encode` wrote.")
    crops: bool = Field(
        default=True,
        description="Take one of a picture's 20 views at random in each epoch, if the store has them (`toklip encode "
        "--augment ten-crop`); with captions, one of the 10 that are not mirrored. false takes the whole square.",
    )


class ClassFolders(Config):
    """Pictures in one folder per class (FOLDER/CLASS/PICTURE); each epoch encodes one random crop of each."""

    kind: Literal["classes"]
    folder: Path = Field(
        description="Folder with one folder per class; classes are numbered in the order of their names.",
    )
    smallest_crop_side: float = Field(
        default=0.8,
        gt=0,
        le=1,
        description="Smallest side of a random crop, as a share of the picture's short side; the largest is 1.",
    )
    flip: bool = Field(default=True, description="Mirror half of the crops, at random.")
    max_pixels: MaxPixels = MAX_PIXELS


GeneratorSource = Annotated[
    CaptionedScenes | CaptionedPictures | CaptionedTable | CaptionedDataset | StoredIds | ClassFolders,
    Field(discriminator="kind"),
]


class TextSetting(Config):
    """Text condition. The width of the text encoder is read from the encoder itself."""

    kind: Literal["text"]
    encoder: str = Field(
        default="toklip",
        min_length=1,
        description="Text encoder: toklip-words (the word embeddings of the TokLIP's text tower), toklip (what the "
        "tower makes of them, before pooling), or the name or path of a T5.",
    )
    length: int = Field(
        gt=0, le=LARGEST_WIDTH, description="Number T of words or tokens per text; longer texts are cut."
    )
    neighbours: int = Field(
        default=0,
        ge=0,
        le=MOST_NEIGHBOURS,
        description="Number of words before and after each word that are read with it: a small generator learns sooner "
        "what belongs together.",
    )


class Architecture(Config):
    """Sizes and inputs of the transformer."""

    size: Literal["B", "L", "XL", "XXL", "XXXL", "1B", "3B", "7B"] | None = Field(
        default=None, description="Name of a LlamaGen size, in place of width, depth and heads."
    )
    width: int = Field(default=0, ge=0, le=LARGEST_WIDTH, description="Width W of the transformer.")
    depth: int = Field(default=0, ge=0, le=MOST_LAYERS, description="Number of transformer blocks.")
    heads: int = Field(
        default=0, ge=0, le=LARGEST_WIDTH, description="Number of attention heads; must divide the width."
    )
    kv_heads: int | None = Field(
        default=None, gt=0, le=LARGEST_WIDTH, description="Number of key and value heads; by default as many as heads."
    )
    hidden_width: int | None = Field(
        default=None,
        gt=0,
        le=LARGEST_WIDTH,
        description="Hidden width of the SwiGLU; by default 8 W / 3, rounded up to a multiple of 256.",
    )
    features: Features = Field(
        default="ids",
        description="Input for each id: the id itself (ids), its code (codes), or its code and semantic token "
        "(concat).",
    )
    condition_keys: ConditionKeys = Field(
        default="zero",
        description="Queries and keys at the condition's positions. zero: all words of a text get equal attention, "
        "as in LlamaGen; rotated: a position can attend to some words more than to others, and their order counts.",
    )
    qk_norm: bool = Field(
        default=False,
        description="Norm the queries and keys of each head, as Qwen3 does and LlamaGen does not, and begin with "
        "larger inputs, as Gemma does: a small generator learns sooner.",
    )
    level_blocks: int | None = Field(
        default=None,
        ge=0,
        le=MOST_LAYERS,
        description="Number of blocks of the transformer that predicts the levels of a position one after another; 0: "
        "one linear layer predicts all levels, independently of each other. By default a fifth of the blocks, at least "
        "1, for a tokenizer whose levels are residual, and 0 for others.",
    )
    grad_checkpointing: bool = Field(
        default=False,
        description="Recompute activations in the backward pass, which saves memory and costs one more forward pass.",
    )

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        given = {name for name in ("width", "depth", "heads") if getattr(self, name)}
        if len(given) != (0 if self.size else 3):
            raise ValueError("give a size, or width, depth and heads")
        refuse_heads(self.sizes.width, self.sizes.heads, self.kv_heads)
        return self

    @property
    def sizes(self) -> Size:
        """Width, depth and heads."""
        return SIZES[self.size] if self.size else Size(self.width, self.depth, self.heads)

    def level_blocks_for(self, *, residual: bool) -> int:
        """Return the number of blocks over the levels of a tokenizer, whose levels may be residual."""
        if self.level_blocks is not None:
            return self.level_blocks
        return max(1, self.sizes.depth // 5) if residual else 0  # VILA-U has 6 beside 32 blocks


class HeldOutStore(HeldOut):
    """Held-out data on which the loss of a generator is evaluated: scenes on plain backgrounds, or a token store.

    The condition of a scene is its class, or one of its captions.
    """

    own: ClassVar[tuple[str, ...]] = ("store",)

    store: Path | None = Field(default=None, description="Token store of held-out pictures.")
    pictures: int = Field(default=1024, gt=0, description="Maximum number of pictures from `store`, evenly spaced.")


class Sampling(Config):
    """Pictures that a run samples at each evaluation, to be shown in TensorBoard."""

    prompts: tuple[int | str, ...] = Field(
        default=(),
        description="Prompts (classes or texts) to sample from; by default those of the first 16 held-out pictures.",
    )
    guidance: float = Field(
        default=4.0,
        ge=0,
        description="Classifier-free guidance scale, also the trained generator's default; 1 turns it off.",
    )
    top_k: int = Field(
        default=0,
        ge=0,
        le=LARGEST_COUNT,
        description="Number of most likely ids to sample from, also the trained generator's default; 0 means all.",
    )

    @property
    def drawing(self) -> Drawing:
        """Settings of drawing these samples."""
        return Drawing(guidance=Guidance(self.guidance), top_k=self.top_k)


class GeneratorTrainConfig(Config):
    """Settings of `toklip train generator`: an autoregressive generator over the ids of a VQ tokenizer."""

    start: str | None = Field(
        default=None,
        description="Name or folder of a generator, such as RUN/model of an earlier stage, whose weights to start "
        "from. These settings must give the same tokenizer, sizes, inputs and condition. By default random weights.",
    )

    tokenizer: str | None = Field(
        default=None, description="Name of the VQ tokenizer, which stays frozen; by default the TokLIP's own."
    )
    tokenizer_weights: Path | None = Field(
        default=None, description="Tokenizer weights, a file or a folder; by default the tokenizer's own."
    )
    toklip: str | None = Field(
        default=None,
        description="Name or folder of the TokLIP; needed for features = 'concat' and for the text encoder toklip.",
    )
    image_size: int = Field(
        gt=0,
        le=LARGEST_SIDE,
        description="Side of the pictures in pixels; the tokenizer must take pictures of this size.",
    )
    resize: ResizeSetting = "crop"
    generator: Architecture
    condition: Annotated[ClassCondition | TextSetting, Field(discriminator="kind")]
    condition_dropout: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="Share of samples trained without their condition; classifier-free guidance needs this.",
    )
    dropout: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="Dropout after the embeddings and after the attention and the MLP of each block.",
    )
    scheduled_sampling: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Largest share of a picture's positions at which the generator reads ids that it sampled itself, "
        "so that it learns to go on after an error of its own; the share of each picture is random, from 0 to this. A "
        "step takes about 1.6 times as long.",
    )
    data: tuple[GeneratorSource, ...] = Field(
        min_length=1,
        description="Training data: all token stores, or all pictures; an epoch is one pass over all sources.",
    )
    held_out: HeldOutStore = HeldOutStore()
    sampling: Sampling = Sampling()
    run: RunConfig

    @model_validator(mode="after")
    def _toklip_where_it_is_read(self) -> Self:
        reads = self.generator.features == "concat" or (
            isinstance(self.condition, TextSetting) and self.condition.encoder in OF_TOKLIP
        )
        if reads and self.toklip is None:
            raise ValueError("features = 'concat' and the text encoder toklip read a TokLIP: set toklip")
        if self.toklip is not None and not reads:
            raise ValueError("toklip is read by features = 'concat' or the text encoder toklip alone; leave it out")
        if self.tokenizer is None and (self.toklip is None or self.tokenizer_weights is not None):
            raise ValueError("name the tokenizer")
        return self

    @model_validator(mode="after")
    def _guidance_is_learned(self) -> Self:
        if self.start is None and self.condition_dropout == 0 and self.sampling.guidance != 1:
            raise ValueError(
                f"got sampling.guidance = {self.sampling.guidance:g} and condition_dropout = 0, but guidance needs "
                "samples trained without their condition: set condition_dropout = 0.1, or sampling.guidance = 1"
            )
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
            if isinstance(source, ClassFolders) and self.resize != "crop":
                raise ValueError("data of the kind 'classes' are cropped: set resize = 'crop', or take a store")
            if not of_class and isinstance(source, ClassFolders):
                raise ValueError("data of the kind 'classes' have no captions; take another kind, or a class condition")
        return self
