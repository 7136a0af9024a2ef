"""``toklip train encoder``: trains a semantic encoder by contrast with captions and distillation from a teacher.

    pixels -tokenizer-> ids -code map--> codes -encoder-> tokens, pooled
       |                                               |       |
    teacher's vision tower ------------------> tokens (MSE), pooled (MSE)
    captions -teacher's text tower, frozen ------------------> contrast

Training from a token store reads no pictures and does not run the tokenizer's networks. Ids come from the store, and
so does the teacher's pooled vector if the store was written with ``toklip encode --teacher``.

Source: TokLIP, https://arxiv.org/abs/2505.05422. The published runs froze the text tower, as here.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toklip_core.captioned import Batch, CaptionedSamples, collate
from toklip_core.model import CLIP, SemanticEncoder, TokLIP, TokLIPConfig, encoder_from_tower, load_clip
from toklip_core.pictures import normalized, resample
from toklip_core.store import StoreInfo
from toklip_core.tasks.held_out import HeldOutSet, evaluate_matcher, held_out_set
from toklip_core.tasks.projector import fit_projector
from toklip_core.tasks.settings import EncoderLosses, EncoderTrainConfig
from toklip_core.tokenizer import Tokenizer, load_tokenizer
from toklip_core.training import (
    Evaluation,
    FitReport,
    Losses,
    ParameterGroup,
    Task,
    fit,
    parameter_groups,
    pooled_distillation,
    sigmoid_contrast,
    softmax_contrast,
    token_distillation,
)
from toklip_core.weights import weights_checksum, without_values

_log = logging.getLogger(__name__)

#: Logarithm of the largest factor on cosines, 100, as in CLIP.
LARGEST_LOGIT_SCALE = math.log(100)

#: Number of pictures that are read at a time to fit the projector.
_AT_ONCE = 64

#: Number of captions that the text tower reads at a time before the first step.
_CAPTIONS = 4096


def train_encoder(config: EncoderTrainConfig, out: Path) -> FitReport:
    """Train an encoder into the folder ``out``, or resume the run there; see :func:`toklip_core.training.fit`.

    The model folder ``out/model`` is a TokLIP: :meth:`toklip_core.model.TokLIP.from_pretrained` takes it.

    Raises:
        FileNotFoundError: data, tokenizer or teacher are missing.
        ValueError: they do not fit one another, or ``fit`` raises it.
        LookupError, OSError: raised by ``fit``.
    """
    tokenizer = load_tokenizer(config.tokenizer, config.tokenizer_weights, image_size=config.image_size)
    task = EncoderTask(config, tokenizer, load_clip(config.teacher))
    report = fit(task, config.run, out)
    warn_of_cut_captions(task.captions.cut, task.teacher.config.text.context_length)
    return report


class EncoderTask(Task):
    """Learn the tokens of a picture from its codes: an encoder, distilled from a teacher and contrasted with captions.

    Tokenizer and teacher are frozen: :meth:`prepare` has them read pictures and captions.

    Args:
        config: settings of the run.
        tokenizer: VQ tokenizer whose codes the encoder reads.
        teacher: CLIP whose features are distilled, and whose text tower reads the captions.

    Raises:
        FileNotFoundError: data are missing.
        ValueError: data, tokenizer and teacher do not fit one another.
    """

    model: EncoderTraining
    collate = staticmethod(collate)

    def __init__(self, config: EncoderTrainConfig, tokenizer: Tokenizer, teacher: CLIP) -> None:
        refuse_misfits(config, tokenizer, teacher)  # before the data, whose inspection may take minutes
        losses = config.losses
        self.config, self.tokenizer, self.teacher = config, tokenizer, teacher.requires_grad_(False).eval()
        held_out = held_out_set(config.held_out, image_size=config.image_size)
        self.samples = CaptionedSamples(
            config.data,
            image_size=config.image_size,
            resize=config.resize,
            seed=config.run.seed,
            smallest_crop_area=config.smallest_crop_area,
        )
        self.order, self.grouped = self.samples.order, self.samples.stored is not None
        checksums: dict[str, Any] = {"tokenizer": tokenizer.checksum, "teacher": weights_checksum(teacher)}
        if self.samples.stored is not None:
            tokenizer.refuse_other_ids(self.samples.stored.tokenizer, "the token store")
            refuse_other_store(config, self.samples.stored, checksums["teacher"])
            checksums["stores"] = self.samples.store_checksums
        self.settings = {**config.model_dump(mode="json", exclude={"run"}), "checksums": checksums}
        torch.manual_seed(config.run.seed)
        encoder = initial_encoder(config, tokenizer, teacher)
        if config.projector_pictures:
            share = self._fit_projector(encoder)
            _log.info("the fitted projector explains %.0f %% of the variance of the teacher's patches", 100 * share)
        self.model = EncoderTraining(encoder, teacher, losses)
        if losses.contrast_weight:
            self.contrast = partial(contrast, kind=losses.contrast, weight=losses.contrast_weight)
        if held_out is not None:
            self.evaluate = partial(self._evaluate, held_out=held_out)
        # A loss on tokens alone does not use the pooling.
        self.unused_parameters = not (losses.contrast_weight or losses.pooled_weight)
        self.captions = CaptionFeatures(teacher, self.samples.distinct_captions(most=config.text_cache))
        self._device: torch.device | None = None

    def prepare(self, batch: Batch) -> EncoderInputs:
        """Run tokenizer and teacher on a batch, unless it has stored ids and teacher's vectors."""
        losses = self.config.losses
        self._move((batch["rgb"] if "rgb" in batch else batch["ids"]).device, sees="rgb" in batch)
        text = self.captions(batch["captions"]) if losses.contrast_weight else None
        if "rgb" not in batch:
            pooled = F.normalize(batch["teacher"], dim=-1) if losses.pooled_weight else None
            return EncoderInputs(self.tokenizer.code_map(batch["ids"]), text, pooled, None)
        pixels = normalized(batch["rgb"])
        codes = self.tokenizer.code_map(self.tokenizer.encode(pixels))
        if not (losses.pooled_weight or losses.token_weight):
            return EncoderInputs(codes, text, None, None)
        tokens, pooled = self.teacher.image_tokens(resample(pixels, self.teacher.config.image_size))
        unit = F.normalize(pooled.float(), dim=-1) if losses.pooled_weight else None
        return EncoderInputs(codes, text, unit, tokens if losses.token_weight else None)

    @torch.no_grad()
    def _fit_projector(self, encoder: SemanticEncoder) -> float:
        """Fit a projector to the teacher's patches of the first training pictures; see :func:`fit_projector`.

        Only their ids are kept. The pictures are read twice, because their patches may not fit into memory.
        """
        count = min(self.config.projector_pictures, len(self.samples))
        # Sorted, because a store is read group by group.
        first = self.order(len(self.samples), self.config.run.seed, 0)[:count].sort().values
        places = torch.split(first, _AT_ONCE)

        def batches() -> Iterator[Batch]:
            return (collate([self.samples[0, place] for place in part.tolist()]) for part in places)

        ids = [self._ids(batch) for batch in batches()]
        return fit_projector(
            encoder,
            lambda: map(self.tokenizer.code_map, ids),
            (self.teacher.patches(self._teacher_pixels(batch)) for batch in batches()),
        )

    def _ids(self, batch: Batch) -> Tensor:
        return self.tokenizer.encode(normalized(batch["rgb"])) if "rgb" in batch else batch["ids"]

    def _teacher_pixels(self, batch: Batch) -> Tensor:
        """Return pixels (B, 3, S, S) of the teacher's side; those of stored ids are decoded."""
        pixels = normalized(batch["rgb"]) if "rgb" in batch else self.tokenizer.decode(batch["ids"])
        return resample(pixels, self.teacher.config.image_size)

    def objective(self, model: nn.Module, prepared: EncoderInputs, step: int) -> Losses:
        """Return the losses of distillation, and the vectors for the contrast."""
        return cast(Losses, model(*prepared))

    def export(self, tensors: dict[str, Tensor], folder: Path) -> None:
        """Write a TokLIP."""
        result = EncoderTraining(SemanticEncoder(self.model.encoder.config), self.teacher, self.config.losses)
        result.load_state_dict(tensors)
        self.assemble(result).save_pretrained(folder)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return groups for the encoder and the temperature; the projector has its own learning rate."""
        return parameter_groups(self.model, {"projector": self.config.projector_learning_rate_factor})

    def after_step(self, model: nn.Module) -> None:
        """Keep the temperature in CLIP's bounds, if it is trained."""
        clamp_logit_scale(model)

    def assemble(self, trained: EncoderTraining) -> TokLIP:
        """Return the trained and the frozen modules as a TokLIP; only temperature and bias are copied."""
        config = self.config
        settings = TokLIPConfig(
            tokenizer=self.tokenizer.record,
            image_size=config.image_size,
            resize=config.resize,
            encoder=trained.encoder.config,
            text=self.teacher.config.text,
        )
        with without_values():
            model = TokLIP(settings, tokenizer=self.tokenizer)
        model.encoder, model.text = trained.encoder, self.teacher.text
        model.logit_scale = nn.Parameter(trained.logit_scale.detach()[0].clone())
        bias = torch.zeros(1) if trained.logit_bias is None else trained.logit_bias.detach()
        model.logit_bias = nn.Parameter(bias[0].to(model.logit_scale.device))
        return model

    def _evaluate(self, product: nn.Module, held_out: HeldOutSet) -> Evaluation:
        model = self.assemble(cast(EncoderTraining, product))
        # A run that goes on may evaluate before it prepares the first batch.
        self.tokenizer.to(model.logit_scale.device)
        self.teacher.text.to(model.logit_scale.device)
        return evaluate_matcher(model, held_out)

    def _move(self, device: torch.device, *, sees: bool) -> None:
        """Move frozen modules to the device of the training; the teacher's vision tower only if it is needed."""
        if device != self._device:
            (self.teacher if sees else self.teacher.text).to(device)
            self.tokenizer.to(device)
            self._device = device


class EncoderInputs(NamedTuple):
    """Inputs of :class:`EncoderTraining` for a batch."""

    #: (B, h, w, C), the tokenizer's code map.
    codes: Tensor
    #: Vectors of the captions (B, E), unit norm; None without contrast.
    text: Tensor | None
    #: The teacher's vectors of the pictures (B, E), unit norm; None if they are not distilled.
    pooled: Tensor | None
    #: The teacher's tokens (B, N, D); None if they are not distilled.
    tokens: Tensor | None


class EncoderTraining(nn.Module):
    """The encoder and the temperature; the forward pass returns the distillation losses, and vectors for the contrast.

    Args:
        encoder: encoder to train.
        teacher: CLIP with the initial temperature and bias; the contrast, if there is one, trains them.
        config: weights of the losses.
    """

    def __init__(self, encoder: SemanticEncoder, teacher: CLIP, config: EncoderLosses) -> None:
        super().__init__()
        self.encoder = encoder
        #: (1,), because FSDP shards no scalars. Only the sigmoid contrast uses the bias.
        self.logit_scale = nn.Parameter(_one(teacher.logit_scale), requires_grad=config.contrast_weight > 0)
        sigmoid = config.contrast == "sigmoid" and config.contrast_weight > 0
        self.logit_bias = nn.Parameter(_one(teacher.logit_bias)) if sigmoid else None
        self.config = config

    def forward(self, codes: Tensor, text: Tensor | None, pooled: Tensor | None, tokens: Tensor | None) -> Losses:
        """Return the losses of a batch; see :class:`EncoderInputs` for the shapes."""
        seen = self.encoder(codes)
        image = F.normalize(seen.pooled.float(), dim=-1)
        losses: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {"logit_scale": self.logit_scale.detach().exp().mean()}
        features: dict[str, Tensor] = {}
        if pooled is not None:
            losses["pooled"] = self.config.pooled_weight * pooled_distillation(image, pooled)
            metrics["cosine"] = (image.detach() * pooled).sum(-1).mean()
        if tokens is not None:
            losses["tokens"] = self.config.token_weight * token_distillation(seen.tokens, tokens)
        if text is not None:
            features = {"image": image, "text": text, "logit_scale": self.logit_scale[0]}
            if self.logit_bias is not None:
                features["logit_bias"] = self.logit_bias[0]
        return Losses(losses, metrics, features)


class CaptionFeatures:
    """Vectors of captions from a teacher's text tower.

    They are not cached batch by batch, because batches differ after a resume, and the last bit of a vector depends on
    its batch.

    Args:
        teacher: CLIP with the text tower.
        known: all captions of the data if they are known; the text tower reads each of them once, at the first call.
            None: captions are read with their batch.
    """

    def __init__(self, teacher: CLIP, known: Sequence[str] | None = None) -> None:
        self._teacher = teacher
        self._known = known
        self._rows: dict[str, int] = {}
        self._kept = torch.empty(0)
        #: Number of captions that were too long for the text tower.
        self.cut = 0

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """Return unit features (B, E), on the device of the text tower."""
        if self._known is None:
            return self._read(captions)
        if not self._rows:
            self._rows = {caption: row for row, caption in enumerate(self._known)}
            parts = [self._known[i : i + _CAPTIONS] for i in range(0, len(self._known), _CAPTIONS)]
            self._kept = torch.cat([self._read(part).cpu() for part in parts])
        device = next(self._teacher.text.parameters()).device
        return self._kept[[self._rows[caption] for caption in captions]].to(device)

    def _read(self, captions: Sequence[str]) -> Tensor:
        tokenizer = self._teacher.text.tokenizer
        before = 0 if tokenizer is None else tokenizer.cut
        features = self._teacher.text_features(captions)
        self.cut += 0 if tokenizer is None else tokenizer.cut - before
        return features


def contrast(features: Mapping[str, Tensor], kind: str, weight: float) -> Losses:
    """Return the contrast of "image" and "text", (B, E) each, with "logit_scale" and, for sigmoid, "logit_bias"."""
    image, text, scale = features["image"], features["text"], features["logit_scale"].exp()
    if kind == "softmax":
        return Losses({"contrast": weight * softmax_contrast(image, text, scale)})
    return Losses({"contrast": weight * sigmoid_contrast(image, text, scale, features["logit_bias"])})


def warn_of_cut_captions(count: int, limit: int) -> None:
    """Log, at the end of a run, how many captions this process has cut, if any."""
    if count:
        _log.warning("%d caption%s cut after %d tokens", count, " was" if count == 1 else "s were", limit)


def clamp_logit_scale(model: nn.Module) -> None:
    """Clamp a temperature that is trained to CLIP's range, 1 to 100; a frozen one stays the teacher's."""
    scale = cast(Any, model).logit_scale
    if scale.requires_grad:
        scale.clamp_(0, LARGEST_LOGIT_SCALE)


def refuse_misfits(config: EncoderTrainConfig, tokenizer: Tokenizer, teacher: CLIP) -> None:
    """Raise ValueError unless size, tokenizer and teacher fit one another."""
    ours = code_grid(config, tokenizer)
    side = teacher.config.image_size // teacher.config.vision.patch_size
    for name, used in {
        "losses.token_weight": config.losses.token_weight,
        "projector_pictures": config.projector_pictures,
    }.items():
        if used and ours != (side, side):
            grids = f"a grid of {ours[0]} x {ours[1]} with the teacher's of {side} x {side}"
            raise ValueError(
                f"{name} compares the tokens of {grids}; set it to 0, or take a teacher with the same grid"
            )


def code_grid(config: EncoderTrainConfig, tokenizer: Tokenizer) -> tuple[int, int]:
    """Return the grid (h, w) of the code map of a picture; raise ValueError if the tokenizer takes no such size."""
    try:
        grid = tokenizer.grid(config.image_size, config.image_size)
    except ValueError as error:
        raise ValueError(f"image_size does not fit {config.tokenizer!r}: {error}") from error
    return tokenizer.embedding.map_grid(grid)


def refuse_other_store(config: EncoderTrainConfig, store: StoreInfo, teacher: str) -> None:
    """Raise ValueError unless a token store has what the losses need, of this teacher.

    Args:
        config: name of the teacher, and the losses.
        store: what its features are.
        teacher: checksum of the teacher's weights.
    """
    if config.losses.token_weight:
        raise ValueError("token_weight needs pixels, and the data is a token store; set it to 0, or read the pictures")
    if config.losses.pooled_weight:
        if store.teacher is None:
            raise ValueError(
                "pooled_weight needs the teacher's features, and the token store has none: encode with --teacher "
                f"{config.teacher}, or set pooled_weight to 0"
            )
        if store.teacher.weights_checksum != teacher:
            raise ValueError(
                f"the token store has features of another teacher, {store.teacher.model!r} (sha256 "
                f"{store.teacher.weights_checksum[:16]}), than {config.teacher!r} ({teacher[:16]}); name "
                "that teacher, or encode again"
            )


def initial_encoder(config: EncoderTrainConfig, tokenizer: Tokenizer, teacher: CLIP) -> SemanticEncoder:
    """Return the encoder with its initial weights."""
    encoder = encoder_from_tower(
        teacher.vision,
        codebook_dim=tokenizer.codebook_dim,
        grid=code_grid(config, tokenizer),
        causal=config.causal,
        neighbours=config.neighbours,
    )
    encoder = SemanticEncoder(encoder.config) if config.initial_values == "random" else encoder
    encoder.grad_checkpointing = config.grad_checkpointing
    return encoder


def _one(scalar: Tensor) -> Tensor:
    return scalar.detach().reshape(1).clone()
