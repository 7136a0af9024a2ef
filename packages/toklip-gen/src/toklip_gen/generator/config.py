"""The config of a generator: its tokenizer, its inputs and conditions, and its sizes.

Shape letters: h and w grid, C width of a code, D width of a semantic token, T positions of the condition, W width of
the transformer.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, model_validator
from toklip_core.config import LARGEST_COUNT, LARGEST_SIDE, LARGEST_WIDTH, MOST_LAYERS, Config, refuse_drawing
from toklip_core.drawing import Drawing, Guidance, IdLevels
from toklip_core.embeddings import CodebookSize
from toklip_core.tokenizer import TokenizerRecord

Features = Literal["ids", "codes", "concat"]
#: Queries and keys at the positions of a condition; see GeneratorConfig.condition_keys.
ConditionKeys = Literal["zero", "rotated"]

_Side = Annotated[int, Field(gt=0, le=LARGEST_SIDE)]
_Size = Annotated[int, Field(gt=0, le=LARGEST_COUNT)]


class ClassCondition(Config):
    """Class condition: one position, filled from an embedding table with a row per class and a row for "no class"."""

    kind: Literal["class"] = "class"
    classes: int = Field(
        gt=0,
        le=LARGEST_COUNT,
        description="Number of classes, which are numbered from 0; the next number means no class.",
    )
    names: tuple[str, ...] | None = Field(
        default=None,
        description="Names of the classes in the order of their numbers; training takes them from the data.",
    )

    @model_validator(mode="after")
    def _a_name_each(self) -> Self:
        if self.names is not None and not len(self.names) == len({*self.names}) == self.classes:
            raise ValueError(f"got {len(self.names)} names of {self.classes} classes; wanted another name for each")
        return self

    @property
    def length(self) -> int:
        """Number T of positions before the first id."""
        return 1


#: Text encoders that are in a TokLIP.
OF_TOKLIP = ("toklip", "toklip-words")
#: Largest number of words before and after a word that are read with it.
MOST_NEIGHBOURS = 16


class TextCondition(Config):
    """Text condition: T positions, filled with the features of a text encoder after a small MLP of the generator."""

    kind: Literal["text"] = "text"
    encoder: str = Field(
        min_length=1,
        description="Text encoder: toklip-words (the word embeddings of the TokLIP's text tower), toklip (what the "
        "tower makes of them, before pooling), or the name of a T5 on the hub.",
    )
    length: int = Field(
        gt=0, le=LARGEST_WIDTH, description="Number T of positions per text; shorter texts are padded on the left."
    )
    width: int = Field(gt=0, le=LARGEST_WIDTH, description="Width of the text encoder's features.")
    neighbours: int = Field(
        default=0,
        ge=0,
        le=MOST_NEIGHBOURS,
        description="Number of words before and after each word that the MLP also reads.",
    )


class GeneratorConfig(Config):
    """Configuration of a generator, stored as ``config.json`` in its folder.

    >>> config = GeneratorConfig(
    ...     tokenizer={"name": "ibq-1024"}, codebook_sizes=(1024,), image_size=(64, 64), grid=(8, 8), width=192,
    ...     depth=4, heads=4, condition=ClassCondition(classes=10),
    ... )
    >>> config.positions, config.mlp_width, config.needs_toklip
    (64, 512, False)
    """

    kind: Literal["generator"] = "generator"
    tokenizer: TokenizerRecord = Field(description="VQ tokenizer whose ids are predicted.")
    toklip: str | None = Field(
        default=None,
        description="Name or path of the TokLIP whose semantic tokens (concat) or text tower the generator reads.",
    )
    toklip_checksum: str | None = Field(
        default=None, description="SHA-256 of the TokLIP weights that the generator reads; others are refused."
    )
    codebook_sizes: tuple[CodebookSize, ...] = Field(
        min_length=1, description="Codebook size of each id of a position, as the tokenizer has them."
    )
    levels: tuple[_Size, ...] | None = Field(
        default=None,
        description="Sizes of the levels in which the ids of a position are predicted; by default the codebook sizes. "
        "An id of many bits is predicted as several levels, the lowest bits first.",
    )
    level_blocks: int = Field(
        default=0,
        ge=0,
        le=MOST_LAYERS,
        description="Number of blocks of the transformer that predicts the levels of a position one after another, for "
        "residual levels; 0: one linear layer predicts all levels, independently of each other.",
    )
    image_size: tuple[_Side, _Side] = Field(description="Height and width of the pictures in pixels.")
    grid: tuple[_Side, _Side] = Field(description="Rows and columns of the ids of a picture.")
    resize: Literal["crop", "squash", "pad"] = Field(
        default="crop",
        description="How pictures were made square in training, and how a prefix picture is made square now.",
    )
    width: int = Field(gt=0, le=LARGEST_WIDTH, description="Width W of the transformer.")
    depth: int = Field(gt=0, le=MOST_LAYERS, description="Number of transformer blocks.")
    heads: int = Field(gt=0, le=LARGEST_WIDTH, description="Number of attention heads; must divide the width.")
    kv_heads: int | None = Field(
        default=None, gt=0, le=LARGEST_WIDTH, description="Number of key and value heads; by default as many as heads."
    )
    hidden_width: int | None = Field(
        default=None,
        gt=0,
        le=LARGEST_WIDTH,
        description="Hidden width of the SwiGLU; by default 8 W / 3, rounded up to a multiple of 256, as in LlamaGen.",
    )
    features: Features = Field(
        default="ids",
        description="Input for each id: the id itself through a learned embedding (ids, as in LlamaGen), its code "
        "(codes), or its code and semantic token (concat, as in TokLIP).",
    )
    feature_width: int | None = Field(
        default=None,
        gt=0,
        le=LARGEST_WIDTH,
        description="Width of the input: C for codes, C + D for concat; not set for ids.",
    )
    condition: ClassCondition | TextCondition = Field(
        discriminator="kind", description="Kind of prompt: classes or texts."
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
    guidance: float = Field(
        default=4.0, ge=0, description="Default classifier-free guidance scale; 1 turns it off."
    )
    top_k: int = Field(
        default=0,
        ge=0,
        le=LARGEST_COUNT,
        description="Default number of most likely ids to sample from; 0 means all.",
    )
    rope_base: float = Field(default=10000.0, gt=0, description="Base of the rotary embedding.")
    norm_eps: float = Field(default=1e-5, gt=0, description="Epsilon of the RMS norms.")

    @property
    def positions(self) -> int:
        """Number N of positions of a picture."""
        return self.grid[0] * self.grid[1]

    @property
    def id_levels(self) -> IdLevels:
        """Levels in which the ids of a position are predicted."""
        return IdLevels(self.codebook_sizes, self.levels or self.codebook_sizes)

    @property
    def mlp_width(self) -> int:
        """Hidden width of the SwiGLU."""
        return self.hidden_width or -(-(8 * self.width // 3) // 256) * 256

    @property
    def drawing(self) -> Drawing:
        """Default settings of drawing."""
        return Drawing(guidance=Guidance(self.guidance), top_k=self.top_k)

    @property
    def needs_toklip(self) -> bool:
        """Whether the generator cannot be used without its TokLIP."""
        return self.features == "concat" or self.reads_tower

    @property
    def reads_tower(self) -> bool:
        """Whether texts are read by the text tower of the TokLIP."""
        return self.condition.kind == "text" and self.condition.encoder in OF_TOKLIP

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        refuse_heads(self.width, self.heads, self.kv_heads)
        refuse_drawing(top_k=self.top_k, most=max(self.id_levels.sizes))  # also unless levels fit the codebook sizes
        if (self.feature_width is None) != (self.features == "ids"):
            raise ValueError("feature_width goes with features = 'codes' or 'concat', and not with 'ids'")
        if (self.toklip is not None) != self.needs_toklip:
            raise ValueError(
                "toklip goes with features = 'concat' or a condition whose encoder is toklip or toklip-words; set both"
            )
        return self


def refuse_heads(width: int, heads: int, kv_heads: int | None) -> None:
    """Raise ValueError unless a transformer of this width can have these attention heads."""
    if width % heads or width // heads % 4:
        raise ValueError(f"width ({width}) over heads ({heads}) must be a multiple of 4: two axes turn in pairs")
    if kv_heads is not None and heads % kv_heads:
        raise ValueError(f"heads ({heads}) must be a multiple of kv_heads ({kv_heads})")


class Size(NamedTuple):
    """Width, depth and heads of a transformer."""

    width: int
    depth: int
    heads: int


#: Source: GPT_models of FoundationVision/LlamaGen, autoregressive/models/gpt.py.
SIZES = {
    "B": Size(768, 12, 12),
    "L": Size(1024, 24, 16),
    "XL": Size(1280, 36, 20),
    "XXL": Size(1536, 48, 24),
    "XXXL": Size(2560, 48, 40),
    "1B": Size(2048, 22, 32),
    "3B": Size(3200, 24, 32),
    "7B": Size(4096, 32, 32),
}
