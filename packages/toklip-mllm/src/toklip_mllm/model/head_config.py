"""The image head of a language model that draws: settings for building one, and what its config stores.

Neither needs transformers, so the settings of training can be read fast.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator
from toklip_core.config import LARGEST_COUNT, LARGEST_WIDTH, MOST_LAYERS, Config
from toklip_core.drawing import Drawing, Guidance

_Size = Annotated[int, Field(gt=0, le=LARGEST_COUNT)]
_Width = Annotated[int, Field(gt=0, le=LARGEST_WIDTH)]


class ImageHeadSettings(Config):
    """An image head to build: it predicts the ids of pictures beside the words of the language model.

    >>> ImageHeadSettings(begin_token="<|vision_start|>", guidance=3.0).level_blocks is None
    True
    """

    begin_token: str = Field(
        default="<begin_image>",
        min_length=1,
        description="Token that opens a picture: a special token of the tokenizer, such as Qwen2.5's "
        "<|vision_start|>. If the tokenizer has no such token, it is appended.",
    )
    level_blocks: int | None = Field(
        default=None,
        ge=0,
        le=MOST_LAYERS,
        description="Number of blocks of the transformer that predicts the levels of a position one after another; 0: "
        "one linear layer predicts all levels. By default 3 for a tokenizer whose levels are residual, and 0 for "
        "others.",
    )
    level_width: _Width | None = Field(
        default=None, description="Width of that transformer; by default the width of the language model."
    )
    level_heads: _Width | None = Field(
        default=None,
        description="Number of its attention heads; by default at most one for each 64 of the width, which they "
        "divide.",
    )
    # Source of the scale: Janus and UniTok.
    guidance: float = Field(
        default=5.0, ge=0, description="The model's default classifier-free guidance scale; 1 turns it off."
    )
    top_k: int = Field(
        default=0,
        ge=0,
        le=LARGEST_COUNT,
        description="The model's default number of most likely ids to sample from; 0 means all.",
    )

    @model_validator(mode="after")
    def _sizes_have_an_effect(self) -> Self:
        if self.level_blocks == 0 and (self.level_width or self.level_heads):
            raise ValueError("level_width and level_heads have no effect without blocks over levels; leave them out")
        return self


class ImageHeadConfig(Config):
    """The image head of a model, stored as ``image_head`` in its ``config.json``.

    >>> ImageHeadConfig(begin_token_id=9, levels=(1024,), guidance=5, top_k=0).drawing.as_text()
    'guidance 5, temperature 1, top-k all, top-p 1'
    """

    begin_token_id: int = Field(ge=0, le=LARGEST_COUNT, description="Token that opens a picture.")
    levels: tuple[_Size, ...] = Field(
        min_length=1, description="Sizes of the levels in which the ids of a position are predicted."
    )
    level_blocks: int = Field(
        default=0,
        ge=0,
        le=MOST_LAYERS,
        description="Number of blocks of the transformer over the levels of a position; 0: one linear layer predicts "
        "all levels, independently of each other.",
    )
    level_width: _Width | None = Field(default=None, description="Width of the transformer over levels, if any.")
    level_heads: _Width | None = Field(default=None, description="Number of its attention heads.")
    guidance: float = Field(ge=0, description="Default classifier-free guidance scale; 1 turns it off.")
    top_k: int = Field(
        ge=0, le=LARGEST_COUNT, description="Default number of most likely ids to sample from; 0 means all."
    )

    @model_validator(mode="after")
    def _sizes_of_the_transformer(self) -> Self:
        if bool(self.level_blocks) != (self.level_width is not None and self.level_heads is not None):
            raise ValueError(
                f"got {self.level_blocks} blocks over levels, {self.level_width} wide, of {self.level_heads} heads; "
                "width and heads go with blocks"
            )
        return self

    @property
    def drawing(self) -> Drawing:
        """Default settings of drawing."""
        return Drawing(guidance=Guidance(self.guidance), top_k=self.top_k)
