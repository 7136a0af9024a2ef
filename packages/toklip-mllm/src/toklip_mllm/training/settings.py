"""The settings of ``toklip train mllm FILE.toml``: language model, pictures, conversations and run."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from toklip_core.config import Config, RunConfig
from toklip_core.ranges import LARGEST_MAX_PIXELS, LARGEST_SEED, MAX_PIXELS

from toklip_mllm.evaluation import HeldOutTalk

#: The shipped settings, NAME.toml each; the first line of each is a comment that says what it is.
RECIPES = files("toklip_mllm") / "recipes"


class SceneTalk(Config):
    """Questions about procedural scenes, and requests for captions; every epoch draws new scenes."""

    kind: Literal["scenes"]
    count: int = Field(gt=0, description="Scenes an epoch; each is one conversation.")
    seed: int = Field(default=0, ge=0, le=LARGEST_SEED, description="Another seed gives other scenes.")
    turns: int | None = Field(
        default=None, gt=0, description="Questions of a conversation, drawn from the scene's; all of them by default."
    )
    captions: float = Field(
        default=0.5, ge=0, le=1, description="Share of the conversations that ask for a caption, at any of their turns."
    )


class Conversations(Config):
    """Conversations of a file, in LLaVA's JSON or in the messages format of transformers; pictures are optional."""

    kind: Literal["conversations"]
    file: Path = Field(description="NAME.json, a list, or NAME.jsonl, one in each line.")
    root: Path | None = Field(
        default=None, description="The folder that the pictures' paths start from; by default the file's own."
    )
    store: Path | None = Field(
        default=None,
        description="A token store of the pictures, which are then not read. Its keys are those that `toklip encode` "
        "gives to the pictures' paths, root included: encode the folder by the name that root has. If it has the "
        "tokens of the model's encoder (`--tokens`), they are read too, and the encoder does not work.",
    )
    max_pixels: int = Field(
        default=MAX_PIXELS,
        gt=0,
        le=LARGEST_MAX_PIXELS,
        description="Width times height above which a picture is not read, and left out.",
    )


TalkSource = Annotated[SceneTalk | Conversations, Field(discriminator="kind")]


class SmallLanguage(Config):
    """A Llama of random weights, and a tokenizer of the data's own words."""

    width: int = Field(gt=0, description="Width of a token.")
    hidden: int = Field(gt=0, description="Width between the two layers of an MLP.")
    heads: int = Field(gt=0, description="Attention heads, which divide the width.")
    layers: int = Field(gt=0, description="Blocks.")
    context_length: int = Field(gt=1, description="Tokens of a conversation, those of pictures included.")
    conversations: int = Field(
        default=20_000, gt=0, description="Conversations, from all over the data, whose words are its vocabulary."
    )

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError(f"width ({self.width}) must be a multiple of twice the heads ({self.heads})")
        return self


class LoRA(Config):
    """Low-rank adapters of the language model, by peft; the exported model has them merged into its weights.

    Source: Hu et al., https://arxiv.org/abs/2106.09685.
    """

    rank: int = Field(default=128, gt=0, description="Rank of an adapter.")
    alpha: float = Field(default=256, gt=0, description="Adapters are scaled by alpha / rank.")
    dropout: float = Field(default=0.05, ge=0, lt=1, description="Of what goes into an adapter.")
    targets: tuple[str, ...] = Field(
        default=(),
        description="Names of layers of the language model, linear ones or embeddings, such as q_proj, lm_head or "
        "embed_tokens; all-linear, the default, is every linear layer but the head, as LLaVA-1.5 has it.",
    )


class MLLMTrainConfig(Config):
    """A language model that reads a TokLIP's tokens: its connector, and the language model itself."""

    start: Path | None = Field(
        default=None,
        description="The model folder of an earlier stage, RUN/model, to go on from; it has the language model, the "
        "TokLIP and the connector.",
    )
    language_model: str | None = Field(
        default=None,
        description="A causal language model of transformers: a folder, or owner/name on the hub. Its tokenizer needs "
        "a chat template.",
    )
    small: SmallLanguage | None = Field(default=None, description="A small one from nothing, in its place.")
    toklip: str | None = Field(default=None, description="A name that `toklip models` lists, or a folder.")
    features: Literal["concat", "tokens", "codes"] = Field(
        default="concat",
        description="What the connector is given: a picture's codes beside its semantic tokens, or one of the two.",
    )
    train: tuple[Literal["connector", "language_model", "encoder"], ...] = Field(
        min_length=1, description="What is trained; all else is frozen."
    )
    lora: LoRA | None = Field(default=None, description="Train the language model by adapters, not whole.")
    template: Literal["chat", "plain"] = Field(
        default="chat",
        description="chat: the language model's own chat template. plain: pictures and the assistant's words alone, as "
        "LLaVA's first stage has it.",
    )
    max_length: int = Field(default=2048, gt=0, description="Longer conversations are cut after so many tokens.")
    frozen_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Of the weights that are not trained. The VQ tokenizer stays in float32."
    )
    saved_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Of the weights in the model folder; saves during the run have their own."
    )
    grad_checkpointing: bool = Field(
        default=False, description="Less memory for the language model's activations, one more forward pass."
    )
    connector_learning_rate_factor: float = Field(default=1.0, gt=0, description="Times the learning rate.")
    data: tuple[TalkSource, ...] = Field(min_length=1, description="One after another.")
    group_by_length: bool = Field(
        default=True,
        description="Batches of conversations of about the same length, those without a picture apart. Scenes are "
        "all of one length.",
    )
    held_out: HeldOutTalk = HeldOutTalk()
    run: RunConfig

    @model_validator(mode="after")
    def _one_beginning(self) -> Self:
        given = [name for name in ("start", "language_model", "small") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"got {' and '.join(given) or 'none'} of start, language_model and small; one of them says which "
                "language model is trained"
            )
        if (self.toklip is None) != (self.start is not None):
            raise ValueError("set toklip, unless there is start, whose model has one")
        if self.start is not None and "features" in self.model_fields_set:
            raise ValueError("features belong to the model that start names; leave them out")
        return self

    @model_validator(mode="after")
    def _something_learns(self) -> Self:
        whole = "language_model" in self.train
        if self.small is not None and not whole:
            raise ValueError("the small language model starts from nothing; put language_model into train")
        if self.frozen_dtype == "bfloat16" and self.run.precision != "bf16":
            raise ValueError(f"frozen_dtype bfloat16 goes with run.precision 'bf16', and got {self.run.precision!r}")
        if self.lora is not None and (not whole or self.small is not None):
            raise ValueError("lora adapts a language model that knows something; put language_model into train")
        return self
