"""The settings of ``toklip train vq FILE.toml``: model, data, losses and run."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, model_validator
from toklip_core.config import (
    LARGEST_MAX_PIXELS,
    LARGEST_SEED,
    MAX_PIXELS,
    Config,
    HeldOut,
    MaxPixels,
    RunConfig,
    changed_alone,
    refuse_without_effect,
)

from toklip_vq.vqgan import VQGANConfig

#: Folder of the shipped recipes NAME.toml; the first line of each is a comment that summarises it.
RECIPES = files("toklip_vq") / "recipes"


class ScenesSource(Config):
    """Generated scenes. Every epoch has new ones."""

    kind: Literal["scenes"]
    count: int = Field(gt=0, description="Number of scenes per epoch.")
    seed: int = Field(
        default=0, ge=0, le=LARGEST_SEED, description="Seed of the scenes; another seed gives other scenes."
    )


class PhotographsSource(Config):
    """Random crops of the public-domain photographs in scikit-image, half of them mirrored."""

    kind: Literal["photographs"]
    count: int = Field(gt=0, description="Number of crops per epoch.")


class FolderSource(Config):
    """Random crops of the picture files in a folder."""

    kind: Literal["folder"]
    folder: Path = Field(description="Folder to search for pictures, with all its subfolders.")
    count: int | None = Field(
        default=None,
        gt=0,
        description="Number of pictures per epoch, taken in turn; by default all. It sets the share of this source in "
        "the data.",
    )
    smallest_crop_side: float = Field(
        default=0.8,
        gt=0,
        le=1,
        description="Smallest side of a random crop, as a share of the picture's short side; the largest is 1.",
    )
    flip: bool = Field(default=True, description="Mirror half of the crops, at random.")
    max_pixels: MaxPixels = MAX_PIXELS


VQSource = Annotated[ScenesSource | PhotographsSource | FolderSource, Field(discriminator="kind")]


class HeldOutFolder(HeldOut):
    """Held-out pictures for a tokenizer: scenes, or a folder of pictures, which are centre-cropped."""

    own: ClassVar[tuple[str, ...]] = ("folder",)

    folder: Path | None = Field(default=None, description="Folder to search for pictures, with all its subfolders.")
    pictures: int = Field(default=1024, gt=0, description="Maximum number of pictures from `folder`, evenly spaced.")
    max_pixels: int = Field(
        default=MAX_PIXELS,
        gt=0,
        le=LARGEST_MAX_PIXELS,
        description="Maximum number of pixels (width x height) of a held-out picture; a larger one ends the run before "
        "its first step.",
    )


class LossConfig(Config):
    """The training losses of a tokenizer and their weights."""

    reconstruction: Literal["l1", "l2"] = Field(
        default="l2", description="Reconstruction loss: absolute (l1) or squared (l2) difference of pixels."
    )
    reconstruction_weight: float = Field(default=1.0, ge=0, description="Weight of the reconstruction loss.")
    perceptual: Literal["none", "squeeze", "alex", "vgg"] = Field(
        default="none",
        description="Network of the LPIPS loss, whose weights must be in the torch hub cache; none turns it off.",
    )
    perceptual_weight: float = Field(default=1.0, ge=0, description="Weight of the LPIPS loss.")
    codebook_weight: float = Field(default=1.0, ge=0, description="Weight of the quantizer's loss; fsq has none.")
    beta: float = Field(
        default=0.25, ge=0, description="Factor on one term of the quantizer's loss, which beta_placement selects."
    )
    beta_placement: Literal["paper", "code"] = Field(
        default="paper",
        description="Term of the quantizer's loss that beta multiplies. paper: the commitment term, which moves "
        "latents (as in the papers and in LlamaGen's code); code: the term that moves codes (as in IBQ's public "
        "code). Lfq has the commitment term alone, and fsq none.",
    )
    entropy_weight: float = Field(
        default=0.0, ge=0, description="Weight of the codebook entropy loss (vq, ibq, lfq); 0 turns it off."
    )
    entropy_temperature: float = Field(
        default=0.01, gt=0, description="Temperature of the softmax over codes in the entropy loss."
    )
    quantize_from: int = Field(
        default=0,
        ge=0,
        description="Step from which latents are quantized. Earlier steps give the decoder the latents themselves. "
        "At this step the codes, and their averages, are initialised to latents of training pictures, which helps "
        "against codebook collapse. 0 quantizes with random codes from the first step, as published.",
    )
    restart_until: int = Field(
        default=0,
        ge=0,
        description="Last step at which dead codes are restarted: a code unused for 100 steps, and its average, is "
        "set to a latent of the current batch, which helps against codebook collapse (vq, ibq, residual). 0 never "
        "restarts codes, as published.",
    )
    discriminator_weight: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the adversarial loss; 0 trains without a discriminator, and other settings of it in a "
        "recipe or file are ignored.",
    )
    discriminator_loss_weight: float = Field(default=1.0, gt=0, description="Weight of the discriminator's own loss.")
    discriminator_start: int = Field(default=0, ge=0, description="Step at which the adversarial losses start.")
    discriminator_channels: int = Field(default=64, gt=0, description="Channels of the discriminator's first layer.")
    discriminator_layers: int = Field(
        default=3, gt=0, description="Number of discriminator layers that halve the resolution."
    )
    discriminator_norm: Literal["batch", "group"] = Field(
        default="batch",
        description="Normalisation of the discriminator: batch (as published), or group, which does not depend on "
        "how a batch is split over processes.",
    )
    generator_loss: Literal["hinge", "non-saturating"] = Field(
        default="hinge", description="Adversarial loss of the decoder; the discriminator always uses the hinge loss."
    )
    lecam_weight: float = Field(default=0.0, ge=0, description="Weight of the discriminator's LeCam regularisation.")
    clip_discriminator: bool = Field(
        default=True, description="Clip the discriminator's gradients to run.max_grad_norm as well."
    )


class VQTrainConfig(Config):
    """Settings of `toklip train vq`: a VQ tokenizer, its data, losses and run."""

    model: VQGANConfig = Field(description="Sizes of the tokenizer.")
    image_size: int = Field(default=256, gt=0, description="Side of the training pictures in pixels.")
    data: tuple[VQSource, ...] = Field(
        min_length=1, description="Training data; an epoch is one pass over all sources."
    )
    held_out: HeldOutFolder = Field(default=HeldOutFolder(scenes=256), description="Held-out pictures to evaluate on.")
    losses: LossConfig = Field(default=LossConfig(), description="Losses and their weights.")
    run: RunConfig = Field(description="Length of the run, optimizer, precision and checkpoints.")

    @model_validator(mode="after")
    def _losses_of_the_quantizer(self) -> Self:
        without = {"entropy_weight": ("fsq", "residual"), "restart_until": ("lfq", "fsq")}
        kind = self.model.quantizer
        names = [name for name, quantizers in without.items() if kind in quantizers]
        refuse_without_effect(self.losses, names, f"with the quantizer {kind!r}", inside="losses.")
        return self

    @model_validator(mode="after")
    def _losses_begin_and_end(self) -> Self:
        losses = self.losses
        if 0 < losses.restart_until <= losses.quantize_from:
            raise ValueError(
                f"losses.restart_until ({losses.restart_until}) must be above quantize_from ({losses.quantize_from}), "
                "where all codes are new; or set it to 0"
            )
        return self

    @model_validator(mode="after")
    def _losses_that_are_off(self, info: ValidationInfo) -> Self:
        losses, kind = self.losses, self.model.quantizer
        of_quantizer = f"with the quantizer {kind!r}"
        discriminator = (
            "discriminator_loss_weight",
            "discriminator_start",
            "discriminator_channels",
            "discriminator_layers",
            "discriminator_norm",
            "generator_loss",
            "lecam_weight",
            "clip_discriminator",
        )
        beta = ("beta", "beta_placement")
        for is_off, names, switch, why in (
            (kind == "fsq", ("codebook_weight", *beta), "model.quantizer", of_quantizer),
            (kind == "lfq", ("beta_placement",), "model.quantizer", of_quantizer),
            (losses.perceptual == "none", ("perceptual_weight",), "losses.perceptual", "without a perceptual loss"),
            (not losses.codebook_weight, beta, "losses.codebook_weight", "with codebook_weight 0"),
            (not losses.entropy_weight, ("entropy_temperature",), "losses.entropy_weight", "with entropy_weight 0"),
            (not losses.discriminator_weight, discriminator, "losses.discriminator_weight", "without a discriminator"),
        ):
            if is_off:
                typed = changed_alone(info, names, switch, inside="losses.")
                refuse_without_effect(losses, typed, why, inside="losses.", instead=f"change {switch}")
        return self

    @model_validator(mode="after")
    def _networks_of_the_losses_fit(self) -> Self:
        losses = self.losses
        if losses.discriminator_weight:
            least = 3 * 2**losses.discriminator_layers
            if self.image_size < least:
                raise ValueError(
                    f"a discriminator of {losses.discriminator_layers} layers needs pictures of {least} pixels, and "
                    f"image_size is {self.image_size}; set losses.discriminator_layers to less"
                )
            widest = [losses.discriminator_channels * min(2**i, 8) for i in range(1, losses.discriminator_layers + 1)]
            if losses.discriminator_norm == "group" and any(width > 32 and width % 32 for width in widest):
                raise ValueError(
                    f"got losses.discriminator_channels {losses.discriminator_channels}, whose layers cannot be split "
                    "into 32 groups; take a multiple of 16, or discriminator_norm = 'batch'"
                )
        if losses.perceptual != "none" and self.image_size < 32:
            raise ValueError(f"LPIPS needs pictures of 32 pixels, and image_size is {self.image_size}")
        return self

    @model_validator(mode="after")
    def _sides_fit(self) -> Self:
        factor = self.model.patch_size * 2 ** (len(self.model.channel_multipliers) - 1)
        if self.image_size % factor:
            raise ValueError(f"image_size ({self.image_size}) must be a multiple of the model's downsampling, {factor}")
        return self
