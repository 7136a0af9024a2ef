"""The settings of ``toklip train vq FILE.toml``: model, data, losses and run."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from toklip_core.config import Config, RunConfig
from toklip_core.ranges import LARGEST_MAX_PIXELS, LARGEST_SEED, MAX_PIXELS

from toklip_vq.vqgan import VQGANConfig

#: The shipped settings, NAME.toml each; the first line of each is a comment that says what it is.
RECIPES = files("toklip_vq") / "recipes"


class ScenesSource(Config):
    """Procedural scenes; every epoch draws new ones."""

    kind: Literal["scenes"]
    count: int = Field(gt=0, description="Scenes an epoch.")
    seed: int = Field(default=0, ge=0, le=LARGEST_SEED, description="Another seed gives other scenes.")


class PhotographsSource(Config):
    """Random crops of the public-domain photographs that scikit-image carries, mirrored half of the time."""

    kind: Literal["photographs"]
    count: int = Field(gt=0, description="Crops an epoch.")


class FolderSource(Config):
    """Picture files below a folder, one random crop of each in an epoch."""

    kind: Literal["folder"]
    folder: Path = Field(description="Searched with all folders below it.")
    count: int | None = Field(
        default=None, gt=0, description="Pictures an epoch, in turn; all of them if it is not given. The mixing weight."
    )
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


Source = Annotated[ScenesSource | PhotographsSource | FolderSource, Field(discriminator="kind")]


class HeldOutConfig(Config):
    """The pictures that a run is evaluated on."""

    scenes: int = Field(default=256, gt=0, description="Scenes of the split 'held-out'.")
    folder: Path | None = Field(default=None, description="Take centre crops of a folder's pictures instead.")
    pictures: int = Field(default=1024, gt=0, description="At most so many of that folder's pictures, evenly chosen.")


class LossConfig(Config):
    """The losses, and the weight of each."""

    reconstruction: Literal["l1", "l2"] = Field(default="l2", description="Absolute or squared difference of pixels.")
    reconstruction_weight: float = Field(default=1.0, ge=0, description="Of the reconstruction loss.")
    perceptual: Literal["none", "squeeze", "alex", "vgg"] = Field(
        default="none", description="LPIPS by this network, whose weights must be in the torch hub cache."
    )
    perceptual_weight: float = Field(default=1.0, ge=0, description="Of LPIPS.")
    quantizer: Literal["straight-through", "index"] = Field(
        default="straight-through", description="LlamaGen's and VQGAN's way, or IBQ's index backpropagation."
    )
    codebook_weight: float = Field(default=1.0, ge=0, description="Of the quantizer's loss.")
    beta: float = Field(default=0.25, ge=0, description="Factor within the quantizer's loss; see beta_placement.")
    beta_placement: Literal["paper", "code"] = Field(
        default="paper",
        description="The papers and LlamaGen's code have beta on the commitment term, which moves latents; the public "
        "code of IBQ has it on the term that moves codes.",
    )
    entropy_weight: float = Field(default=0.0, ge=0, description="Of the entropy of ids; 0 computes none.")
    entropy_temperature: float = Field(default=0.01, gt=0, description="Scores are divided by it before the softmax.")
    quantize_from: int = Field(
        default=0,
        ge=0,
        description="Before this step the decoder gets the latents themselves; at it the codes are set to latents of "
        "training pictures. Against collapse of the codebook. 0: random codes from the first step, as published.",
    )
    restart_until: int = Field(
        default=0,
        ge=0,
        description="Up to this step, a code that occurs in none of 100 steps becomes a latent of the batch at hand. "
        "Against collapse of the codebook. 0: never, as published.",
    )
    discriminator_weight: float = Field(default=0.0, ge=0, description="Of the adversarial loss; 0: no discriminator.")
    discriminator_loss_weight: float = Field(default=1.0, gt=0, description="Of the discriminator's own loss.")
    discriminator_start: int = Field(default=0, ge=0, description="Step at which the adversarial losses set in.")
    discriminator_channels: int = Field(default=64, gt=0, description="Width of its first layer.")
    discriminator_layers: int = Field(default=3, gt=0, description="Its layers that halve the picture.")
    discriminator_norm: Literal["batch", "group"] = Field(
        default="batch",
        description="batch as published; group does not depend on how a batch is split over processes.",
    )
    generator_loss: Literal["hinge", "non-saturating"] = Field(
        default="hinge", description="What the decoder minimises; the discriminator has the hinge loss."
    )
    lecam_weight: float = Field(default=0.0, ge=0, description="Of LeCam regularisation of the discriminator.")
    clip_discriminator: bool = Field(default=True, description="Clip its gradients by run.max_grad_norm, too.")


class VQTrainConfig(Config):
    """`toklip train vq FILE.toml`."""

    model: VQGANConfig = Field(description="The tokenizer.")
    image_size: int = Field(default=256, gt=0, description="Side of the training pictures.")
    data: tuple[Source, ...] = Field(min_length=1, description="Sources; an epoch has all of each.")
    held_out: HeldOutConfig = Field(default=HeldOutConfig(), description="What the run is evaluated on.")
    losses: LossConfig = Field(default=LossConfig(), description="What is minimised.")
    run: RunConfig = Field(description="Length, optimizer, saves.")

    @model_validator(mode="after")
    def _sides_fit(self) -> Self:
        factor = self.model.patch_size * 2 ** (len(self.model.channel_multipliers) - 1)
        if self.image_size % factor:
            raise ValueError(f"image_size ({self.image_size}) must be a multiple of the model's downsampling, {factor}")
        return self
