"""The settings of ``toklip train mllm FILE.toml``: language model, pictures, conversations and run."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator
from toklip_core.captioned import BackgroundKind, CaptionSource
from toklip_core.config import LARGEST_SEED, MAX_PIXELS, Config, MaxPixels, ResizeSetting, RunConfig
from toklip_core.model import FeatureKind

from toklip_mllm.evaluation import HeldOutQuestions
from toklip_mllm.model import ImageHeadSettings

#: Settings without effect on a model that does not draw.
OF_DRAWING = ("image_weight", "image_z_loss", "prompt_dropout", "scheduled_sampling")
#: Folder of the shipped recipes NAME.toml; the first line of each is a comment that summarises it.
RECIPES = files("toklip_mllm") / "recipes"


Passes = Annotated[
    int,
    Field(
        gt=0,
        description="Number of passes over this source in an epoch, which sets the mixture with the other sources.",
    ),
]


#: Kinds of questions about scenes.
QuestionKind = Literal["colour", "shape", "count", "existence", "relation", "size", "place"]


class SceneConversations(Config):
    """Conversations about generated scenes: questions and requests for captions. Every epoch has new scenes."""

    kind: Literal["scenes"]
    count: int = Field(gt=0, description="Number of conversations per epoch.")
    scenes: int = Field(
        default=1,
        gt=0,
        description="Number of scenes per conversation, one after another, so that a picture is also shown or drawn "
        "in the middle of a conversation. Questions are about the last one.",
    )
    seed: int = Field(
        default=0,
        ge=0,
        le=LARGEST_SEED,
        description="Seed of the scenes; another seed gives other scenes.",
    )
    objects: Literal[1, 2, 3] | None = Field(default=None, description="Number of objects; by default 1 to 3.")
    background: BackgroundKind | None = Field(
        default=None, description="Background of all scenes; by default random for each scene."
    )
    questions: tuple[QuestionKind, ...] = Field(
        default=get_args(QuestionKind),
        min_length=1,
        description="Kinds of questions that are asked. Where a scene allows none of them, its caption is asked for.",
    )
    rounds: int = Field(
        default=1,
        gt=0,
        description="Number of times that a question of each kind is drawn; one that comes again is asked once.",
    )
    turns: int | None = Field(
        default=None, gt=0, description="Number of questions per scene, chosen at random; by default all."
    )
    independent: bool = Field(
        default=False,
        description="Ask each question by itself: it sees the picture and no other question or answer, which often "
        "give its own answer away. They share the picture, so one more question costs its own tokens alone. With one "
        "scene per conversation, shown by the user.",
    )
    caption_share: float = Field(
        default=0.5, ge=0, le=1, description="Share of scenes whose caption is asked for, too, at a random turn."
    )
    drawn_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of scenes that the assistant draws from a caption before it is asked about them; the "
        "others are shown by the user. Needs an image head.",
    )
    store: Path | None = Field(
        default=None,
        description='Token store of the scenes, such as one from `toklip encode "scenes:train?count=N&seed=SEED"`, to '
        "read in place of rendering and encoding them. Each epoch then has the same scenes; without it, new ones.",
    )
    passes: Passes = 1

    @model_validator(mode="after")
    def _independent_questions_are_about_one_picture(self) -> Self:
        if self.independent and (self.scenes > 1 or self.drawn_share):
            raise ValueError(
                f"got independent questions with scenes = {self.scenes} and drawn_share = {self.drawn_share}; they are "
                "about one scene that the user shows: give scenes = 1 and drawn_share = 0, or independent = false"
            )
        return self


class Conversations(Config):
    """Conversations from a file, in LLaVA's JSON or the messages format of transformers; pictures are optional."""

    kind: Literal["conversations"]
    file: Path = Field(description="File of conversations: NAME.json with a list, or NAME.jsonl with one per line.")
    root: Path | None = Field(
        default=None, description="Folder that the picture paths are relative to; by default the folder of the file."
    )
    store: Path | None = Field(
        default=None,
        description="Token store to read in place of the pictures. Its keys must be the picture paths including "
        "root, so run `toklip encode` on the folder exactly as it is written in root. If the store also has the "
        "tokens of the model's encoder (`--tokens`), these are read too, and the encoder does not run.",
    )
    max_pixels: MaxPixels = MAX_PIXELS
    passes: Passes = 1


class Drawings(Config):
    """Captioned pictures, each as a conversation: the user says the caption, and the assistant draws the picture."""

    kind: Literal["drawings"]
    pictures: CaptionSource = Field(
        description="Captioned pictures, as in `toklip train encoder`: scenes, pictures, a table, a dataset, or a "
        "token store with captions."
    )
    requests: tuple[str, ...] = Field(
        default=("draw {caption}", "{caption}"),
        min_length=1,
        description="What the user says, one of them at random; {caption} stands for the caption.",
    )
    passes: Passes = 1

    @model_validator(mode="after")
    def _captions_are_asked_for(self) -> Self:
        if wrong := [request for request in self.requests if "{caption}" not in request]:
            raise ValueError(f"got the request {wrong[0]!r}; put {{caption}} where the caption goes")
        return self


ConversationSource = Annotated[SceneConversations | Conversations | Drawings, Field(discriminator="kind")]


def needs_image_head(sources: Sequence[ConversationSource]) -> bool:
    """Return whether a source has pictures that are drawn for certain, which need an image head."""
    return any(isinstance(source, Drawings) or getattr(source, "drawn_share", 0) > 0 for source in sources)


class SmallLanguage(Config):
    """A small Qwen3 with random weights, and a tokenizer whose vocabulary is the words of the data."""

    width: int = Field(gt=0, description="Width of the token embeddings.")
    hidden: int = Field(gt=0, description="Hidden width of the MLPs.")
    heads: int = Field(gt=0, description="Number of attention heads; twice this number must divide the width.")
    layers: int = Field(gt=0, description="Number of transformer blocks.")
    context_length: int = Field(
        gt=1,
        description="Maximum number of tokens per conversation, including those of pictures.",
    )
    conversations: int = Field(
        default=20_000,
        gt=0,
        description="Number of conversations, sampled across all data, whose words form the vocabulary.",
    )

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError(f"width ({self.width}) must be a multiple of twice the heads ({self.heads})")
        return self


class LoRA(Config):
    """Low-rank adapters of the language model (by peft), which are merged into the weights of the exported model.

    Source: Hu et al., https://arxiv.org/abs/2106.09685.
    """

    rank: int = Field(default=128, gt=0, description="Rank of the adapters.")
    alpha: float = Field(
        default=256,
        gt=0,
        description="Scale of the adapters: their output is multiplied by alpha / rank.",
    )
    dropout: float = Field(default=0.05, ge=0, lt=1, description="Dropout on the input of an adapter.")
    targets: tuple[str, ...] = Field(
        default=(),
        description="Names of linear or embedding layers of the language model that get adapters, such as q_proj, "
        "lm_head or embed_tokens; by default (all-linear) every linear layer except the head, as in LLaVA-1.5.",
    )


class MLLMTrainConfig(Config):
    """Settings of `toklip train mllm`: a language model that reads a TokLIP's tokens through a connector."""

    start: Path | None = Field(
        default=None,
        description="Model folder of an earlier stage (RUN/model) to start from; it contains the language model, the "
        "TokLIP and the connector. A small one of `small` learns the words of the data that it does not know, unless "
        "its language model is frozen or has adapters.",
    )
    language_model: str | None = Field(
        default=None,
        description="Causal language model of transformers: a folder, or owner/name on the hub. Its tokenizer needs "
        "a chat template.",
    )
    small: SmallLanguage | None = Field(
        default=None, description="Small language model trained from scratch, in place of language_model."
    )
    toklip: str | None = Field(default=None, description="TokLIP: a name from `toklip models`, or a folder.")
    features: FeatureKind = Field(
        default="concat",
        description="Input of the connector: a picture's codes and semantic tokens (concat), or one of the two.",
    )
    resize: ResizeSetting | None = Field(
        default=None,
        description="How a picture is made square: crop takes the centre, squash ignores the aspect ratio, pad adds "
        "grey (LLaVA pads, too). By default that of the TokLIP.",
    )
    image_head: ImageHeadSettings | None = Field(
        default=None,
        description="Image head to add, for a model that also draws; a model that `start` names may have one already.",
    )
    train: tuple[Literal["connector", "language_model", "encoder", "image_head"], ...] = Field(
        min_length=1, description="Parts to train; all others are frozen."
    )
    lora: LoRA | None = Field(
        default=None,
        description="Train low-rank adapters of the language model instead of all its weights.",
    )
    template: Literal["chat", "plain"] = Field(
        default="chat",
        description="Template of conversations. chat: the language model's own chat template; plain: only the pictures "
        "and the assistant's text, as in LLaVA's first stage.",
    )
    max_length: int = Field(
        default=2048,
        gt=0,
        description="Maximum number of tokens per conversation; longer ones are cut.",
    )
    frozen_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Dtype of the frozen weights; the VQ tokenizer stays in float32."
    )
    saved_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="Dtype of the weights in the model folder; checkpoints keep the dtype of training.",
    )
    grad_checkpointing: bool = Field(
        default=False,
        description="Recompute the language model's activations in the backward pass, which saves memory and costs one "
        "more forward pass.",
    )
    connector_learning_rate_factor: float = Field(
        default=1.0, gt=0, description="Factor on the learning rate of the connector."
    )
    image_weight: float = Field(
        default=1.0,  # VILA-U's; UniTok weights text and pictures by their shares of the tokens
        gt=0,
        description="Weight of the loss of drawn pictures beside the loss of the text.",
    )
    image_z_loss: float = Field(
        default=0.0,  # UniTok's is 5e-5
        ge=0,
        description="Weight of the z-loss, the mean square of log Z of the logits of pictures, which keeps them small.",
    )
    prompt_dropout: float = Field(
        default=0.1,  # Liquid's and UniTok's; Emu3's is 0.05
        ge=0,
        lt=1,
        description="Share of conversations with drawn pictures of which the first such picture is trained alone, "
        "after the begin token, without its prompt and all that follows; classifier-free guidance needs this.",
    )
    scheduled_sampling: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Largest share of a drawn picture's positions at which the model reads ids that it sampled itself, "
        "so that it learns to go on after an error of its own; the share of each picture is random, from 0 to this. It "
        "costs one more forward pass, and the encoder runs even if the store has its tokens.",
    )
    data: tuple[ConversationSource, ...] = Field(
        min_length=1,
        description="Training data; an epoch is `passes` passes over each source.",
    )
    group_by_length: bool = Field(
        default=True,
        description="Put conversations of similar length into the same batch, separately with and without pictures. "
        "All conversations about the scenes of a source, and all drawings of a source, count as long as its first one.",
    )
    held_out: HeldOutQuestions = HeldOutQuestions()
    run: RunConfig

    @model_validator(mode="after")
    def _one_beginning(self) -> Self:
        given = [name for name in ("start", "language_model", "small") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"got {' and '.join(given) or 'none'} of start, language_model and small; one of them says which "
                "language model is trained"
            )
        if self.resize is not None and self.start is not None:
            raise ValueError("got resize beside start, whose model has its own; leave it out")
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
        if self.image_head is not None and "image_head" not in self.train:
            raise ValueError("a new image head knows nothing; put image_head into train")
        if self.start is None and "connector" not in self.train:
            raise ValueError("a new connector knows nothing; put connector into train")
        if "connector_learning_rate_factor" in self.model_fields_set and "connector" not in self.train:
            raise ValueError("connector_learning_rate_factor has no effect on a frozen connector; leave it out")
        return self

    @model_validator(mode="after")
    def _plain_template_fits(self) -> Self:
        if self.template == "plain" and any(getattr(source, "independent", False) for source in self.data):
            raise ValueError(
                "template 'plain' renders no questions, so they cannot be asked independently; give template = 'chat', "
                "or independent = false"
            )
        if self.template == "plain" and needs_image_head(self.data):
            raise ValueError(
                "template 'plain' renders nothing that the user says, so pictures would be drawn without their "
                "captions; give template = 'chat'"
            )
        return self
