"""``config.json`` of a generator: what it draws in, what it reads, and its sizes.

Letters: K ids of the codebook, h and w grid, C width of a code, D width of a semantic token, T positions of the
condition, W width of the transformer.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, model_validator
from toklip_core.config import Config, FileName

Features = Literal["ids", "codes", "concat"]
#: Of the positions of a condition; see GeneratorConfig.condition_keys.
ConditionKeys = Literal["zero", "learned"]

_Side = Annotated[int, Field(gt=0)]


class ClassCondition(Config):
    """A class is one position: a row of a table, which has one more row for no class."""

    kind: Literal["class"] = "class"
    classes: int = Field(gt=0, description="Classes, from 0 on; the next number stands for none.")
    names: tuple[str, ...] | None = Field(
        default=None, description="Names of the classes in the order of their numbers; a training takes the data's own."
    )

    @model_validator(mode="after")
    def _a_name_each(self) -> Self:
        if self.names is not None and not len(self.names) == len({*self.names}) == self.classes:
            raise ValueError(f"got {len(self.names)} names of {self.classes} classes; wanted another name for each")
        return self

    @property
    def length(self) -> int:
        """T: positions before the first id."""
        return 1


class TextCondition(Config):
    """A text is T positions: features of a text encoder, through a small network of the generator's."""

    kind: Literal["text"] = "text"
    encoder: str = Field(
        min_length=1,
        description="Text encoder: toklip (the text tower of the TokLIP, before pooling), or a T5 of the hub.",
    )
    length: int = Field(gt=0, description="T: positions of a text; shorter ones are padded on the left.")
    width: int = Field(gt=0, description="Width of the text encoder's features.")


class GeneratorConfig(Config):
    """``config.json`` of a generator."""

    kind: Literal["generator"] = "generator"
    tokenizer: str = Field(description="Name of the VQ tokenizer in the registry.")
    tokenizer_file: FileName | None = Field(
        default=None,
        description="Its weights, a file or folder beside this one; none: those that its name stands for.",
    )
    tokenizer_checksum: str | None = Field(
        default=None, description="SHA-256 of the weights it was trained with; other ones are refused."
    )
    toklip: str | None = Field(
        default=None, description="TokLIP whose semantic tokens (concat) or text tower it reads: a name or path."
    )
    toklip_checksum: str | None = Field(
        default=None, description="SHA-256 of the parts of the TokLIP that are read; other ones are refused."
    )
    codebook_size: int = Field(gt=0, description="K: ids that it chooses from.")
    grid: tuple[_Side, _Side] = Field(description="Rows and columns of ids.")
    width: int = Field(gt=0, description="W: width of the transformer.")
    depth: int = Field(gt=0, description="Blocks.")
    heads: int = Field(gt=0, description="Attention heads, which divide the width.")
    kv_heads: int | None = Field(default=None, gt=0, description="Heads of keys and values; none: as many as heads.")
    hidden_width: int | None = Field(
        default=None, gt=0, description="Of the SwiGLU; none: 8 W / 3, up to a multiple of 256, as LlamaGen has it."
    )
    features: Features = Field(
        default="ids",
        description="What is read of the last id: ids (a learned table, LlamaGen's way), codes (its row of the "
        "codebook), or concat (its code and its semantic token, TokLIP's way).",
    )
    feature_width: int | None = Field(
        default=None, gt=0, description="Width of what is read: C with codes, C + D with concat; none with ids."
    )
    condition: ClassCondition | TextCondition = Field(discriminator="kind", description="What a picture is to show.")
    condition_keys: ConditionKeys = Field(
        default="zero",
        description="Queries and keys at the condition's positions: zero, as LlamaGen was trained, so that what comes "
        "after sees all words of a text alike; or learned, so that it can choose among them.",
    )
    guidance: float = Field(default=4.0, ge=0, description="With which it draws, unless another is asked for; 1: none.")
    top_k: int = Field(default=0, ge=0, description="Likeliest ids it draws from, unless others are asked for; 0: all.")
    rope_base: float = Field(default=10000.0, gt=0, description="Of the rotary embedding.")
    norm_eps: float = Field(default=1e-5, gt=0, description="Of the RMS norms.")

    @property
    def positions(self) -> int:
        """N: ids of a picture."""
        return self.grid[0] * self.grid[1]

    @property
    def mlp_width(self) -> int:
        """Hidden width of the SwiGLU."""
        return self.hidden_width or -(-(8 * self.width // 3) // 256) * 256

    @property
    def needs_toklip(self) -> bool:
        """Whether it cannot be used without its TokLIP."""
        return self.features == "concat" or (self.condition.kind == "text" and self.condition.encoder == "toklip")

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.width % self.heads or self.width // self.heads % 4:
            raise ValueError(
                f"width ({self.width}) over heads ({self.heads}) must be a multiple of 4: two axes turn in pairs"
            )
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if (self.feature_width is None) != (self.features == "ids"):
            raise ValueError("feature_width goes with features = 'codes' or 'concat', and not with 'ids'")
        if (self.toklip is not None) != self.needs_toklip:
            raise ValueError("toklip goes with features = 'concat' or a condition whose encoder is toklip; set both")
        return self


class Size(NamedTuple):
    """A published size."""

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
