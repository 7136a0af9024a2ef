"""``toklip train encoder``: a semantic encoder from a teacher, by contrast with captions and distillation.

    pixels -tokenizer-> ids -tokenizer-> codes -encoder-> tokens, pooled
       |                                               |       |
    teacher's vision tower ------------------> tokens (MSE), pooled (MSE)
    captions -teacher's text tower, frozen ------------------> contrast

From a token store neither pictures nor the tokenizer's networks are touched: ids come from it, and the teacher's
features too, if it was written with ``toklip encode --teacher``.

Source: TokLIP, https://arxiv.org/abs/2505.05422. The published runs froze the text tower, as here.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toklip_core.captioned import Batch, CaptionedSamples, collate
from toklip_core.model import CLIP, SemanticEncoder, TokLIP, TokLIPConfig, encoder_from_tower, load_clip
from toklip_core.pictures import normalized
from toklip_core.plugins import VQTokenizer, load_tokenizer
from toklip_core.store import StoreInfo
from toklip_core.tasks.held_out import evaluated, held_out_set
from toklip_core.tasks.settings import EncoderLosses, EncoderTrainConfig
from toklip_core.training import (
    FitReport,
    Losses,
    ParameterGroup,
    fit,
    pooled_distillation,
    sigmoid_contrast,
    softmax_contrast,
    token_distillation,
)
from toklip_core.weights import weights_checksum

_log = logging.getLogger(__name__)

#: CLIP's bound of the temperature: cosines are never multiplied by more than 100.
LARGEST_LOGIT_SCALE = math.log(100)

#: Modules and parameters that are no matrices of a product, and not decayed, though they have two dimensions and more.
#: Embeddings of words neither: rows of words that a batch lacks get no gradient, and decay would shrink the rare ones.
_NOT_DECAYED = {"pos_embed", "cls_token", "class_token", "latent", "positional_embedding", "token_embedding"}
#: Where the matrices of hidden layers are: blocks of timm, of open_clip.
_HIDDEN = {"blocks", "resblocks"}

#: Captions that the text tower is given at a time, where they are read before the first step.
_CAPTIONS = 4096


def train_encoder(config: EncoderTrainConfig, out: Path) -> FitReport:
    """Train an encoder into ``out``, or go on with the run there; see :func:`toklip_core.training.fit`.

    The model folder ``out/model`` is a TokLIP: :meth:`toklip_core.model.TokLIP.from_pretrained` takes it.

    Raises:
        FileNotFoundError: data, tokenizer or teacher are not there.
        ValueError: they do not fit one another, or as ``fit``.
        LookupError, OSError: as ``fit``.
    """
    tokenizer = load_tokenizer(config.tokenizer, config.tokenizer_weights)
    teacher = load_clip(config.teacher).requires_grad_(False).eval()
    refuse_misfits(config, tokenizer, teacher)  # before the data, which may take minutes to look through
    held_out = held_out_set(config.held_out, image_size=config.image_size)
    samples = CaptionedSamples(
        config.data,
        image_size=config.image_size,
        resize=config.resize,
        seed=config.run.seed,
        smallest_crop=config.smallest_crop,
    )
    checksums = {"tokenizer": weights_checksum(cast(nn.Module, tokenizer)), "teacher": weights_checksum(teacher)}
    if samples.stored is not None:
        refuse_other_store(config, samples.stored, checksums)
    torch.manual_seed(config.run.seed)
    losses = config.losses
    between = partial(contrast, kind=losses.contrast, weight=losses.contrast_weight)
    model = EncoderTraining(started(config, tokenizer, teacher), teacher, losses)
    frozen = Frozen(tokenizer, teacher, config, samples.distinct_captions(most=config.text_cache))

    def assembled(trained: nn.Module) -> TokLIP:
        return _assembled(config, cast(EncoderTraining, trained), tokenizer, teacher, checksums["tokenizer"])

    def export(tensors: dict[str, Tensor], folder: Path) -> None:
        result = EncoderTraining(SemanticEncoder(model.encoder.config), teacher, losses)
        result.load_state_dict(tensors)
        assembled(result).save_pretrained(folder)

    report = fit(
        model,
        samples,
        lambda model, batch, step: cast(Losses, model(*frozen(batch))),
        config.run,
        out,
        settings={
            **config.model_dump(mode="json", exclude={"run"}),
            "checksums": checksums,
            "samples": len(samples),  # with another number of them their order is another
        },
        export=export,
        evaluate=None if held_out is None else lambda product: evaluated(assembled(product), held_out),
        groups=parameter_groups(model, {"projector": config.projector_learning_rate_factor}),
        order=samples.order,
        collate=collate,
        contrast=between if losses.contrast_weight else None,
        after_step=clamp_logit_scale,
        unused_parameters=not (losses.contrast_weight or losses.pooled_weight),  # tokens alone leave the pooling out
    )
    warn_of_cut_captions(frozen.cut, teacher.config.text.context_length)
    return report


class Inputs(NamedTuple):
    """A batch as the encoder's training takes it."""

    #: (B, h, w, C).
    codes: Tensor
    #: (B, E), unit norm, of the captions; None if there is no contrast.
    text: Tensor | None
    #: (B, E), unit norm, of the teacher on the pictures; None if it is not distilled.
    pooled: Tensor | None
    #: (B, N, D), of the teacher; None if they are not distilled.
    tokens: Tensor | None


class EncoderTraining(nn.Module):
    """The encoder and the temperature; the forward pass gives the losses that are means over samples, and features.

    Args:
        encoder: what is trained.
        teacher: where temperature and bias start. They are trained by the contrast, if there is one.
        config: weights.
    """

    def __init__(self, encoder: SemanticEncoder, teacher: CLIP, config: EncoderLosses) -> None:
        super().__init__()
        self.encoder = encoder
        #: (1,): FSDP shards no scalar. The bias is the sigmoid's alone.
        self.logit_scale = nn.Parameter(_one(teacher.logit_scale), requires_grad=config.contrast_weight > 0)
        sigmoid = config.contrast == "sigmoid" and config.contrast_weight > 0
        self.logit_bias = nn.Parameter(_one(teacher.logit_bias)) if sigmoid else None
        self.config = config

    def forward(self, codes: Tensor, text: Tensor | None, pooled: Tensor | None, tokens: Tensor | None) -> Losses:
        """Return the losses of a batch; see :class:`Inputs` for the shapes."""
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


class Frozen:
    """What stays as it is: tokenizer and teacher turn a batch of the data into the inputs of the training.

    Args:
        tokenizer: of the ids.
        teacher: of pictures and captions.
        config: what is asked of them.
        captions: all captions of the data, where they are known: the text tower reads each of them once, when the first
            batch comes. None: a caption is read with its batch. Features are not kept as captions come: after a resume
            they would come in other batches, of which the last bit of a feature depends.
    """

    def __init__(
        self, tokenizer: VQTokenizer, teacher: CLIP, config: EncoderTrainConfig, captions: Sequence[str] | None = None
    ) -> None:
        self._tokenizer, self._teacher, self._losses = tokenizer, teacher, config.losses
        self._size = teacher.config.image_size
        self._captions = captions
        self._rows: dict[str, int] = {}
        self._texts = torch.empty(0)
        self._device: torch.device | None = None
        #: Captions that were longer than the text tower reads.
        self.cut = 0
        self._kept: dict[int, tuple[Batch, Inputs]] = {}

    def __call__(self, batch: Batch) -> Inputs:
        """Return the inputs of a batch that is on the training's device.

        A batch that comes twice, without gradients and then with them (see ``contrast`` of
        :func:`toklip_core.training.fit`), is read once.
        """
        if torch.is_grad_enabled():
            return self._kept.pop(id(batch))[1] if id(batch) in self._kept else self._read(batch)
        inputs = self._read(batch)
        self._kept[id(batch)] = batch, inputs
        return inputs

    @torch.no_grad()
    def _read(self, batch: Batch) -> Inputs:
        losses = self._losses
        self._to((batch["pixels"] if "pixels" in batch else batch["ids"]).device, sees="pixels" in batch)
        text = self._text(batch["captions"]) if losses.contrast_weight else None
        if "pixels" not in batch:
            pooled = F.normalize(batch["teacher"], dim=-1) if losses.pooled_weight else None
            return Inputs(self._tokenizer.embed(batch["ids"]), text, pooled, None)
        pixels = normalized(batch["pixels"])
        codes = self._tokenizer.embed(self._tokenizer.encode(pixels))
        if not (losses.pooled_weight or losses.token_weight):
            return Inputs(codes, text, None, None)
        tokens, pooled = self._teacher.image_tokens(_resampled(pixels, self._size))
        unit = F.normalize(pooled.float(), dim=-1) if losses.pooled_weight else None
        return Inputs(codes, text, unit, tokens if losses.token_weight else None)

    def _to(self, device: torch.device, *, sees: bool) -> None:
        if device == self._device:
            return
        self._device = device
        (self._teacher if sees else self._teacher.text).to(device)
        cast(nn.Module, self._tokenizer).to(device)
        if self._captions is not None and self._losses.contrast_weight:
            self._rows = {caption: row for row, caption in enumerate(self._captions)}
            parts = [self._captions[i : i + _CAPTIONS] for i in range(0, len(self._captions), _CAPTIONS)]
            self._texts = torch.cat([self._features(part).cpu() for part in parts])

    def _text(self, captions: Sequence[str]) -> Tensor:
        if not self._rows:
            return self._features(captions)
        return self._texts[[self._rows[caption] for caption in captions]].to(self._device)


    def _features(self, captions: Sequence[str]) -> Tensor:
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
    """Say in the log, at the end of a run, how many captions were cut by this process; nothing if none was."""
    if count:
        _log.warning("%d caption%s cut after %d tokens", count, " was" if count == 1 else "s were", limit)


def clamp_logit_scale(model: nn.Module) -> None:
    """Keep the temperature in CLIP's bounds, 1 to 100."""
    cast(Any, model).logit_scale.clamp_(0, LARGEST_LOGIT_SCALE)


def parameter_groups(model: nn.Module, factors: Mapping[str, float] | None = None) -> list[ParameterGroup]:
    """Return groups without weight decay for norms, biases, positions, learnt tokens and the temperature.

    The matrices of the blocks are groups of their own, for Muon (https://kellerjordan.github.io/posts/muon/).

    Args:
        model: what is trained.
        factors: name of a part -> factor of the learning rate of the parameters that have it in their names.
    """
    groups: dict[tuple[float, bool, bool], set[str]] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            parts = {*name.split(".")}
            factor = next((factor for part, factor in (factors or {}).items() if part in parts), 1.0)
            decayed = weight.ndim > 1 and not _NOT_DECAYED & parts
            matrix = decayed and weight.ndim == 2 and bool(_HIDDEN & parts)
            groups.setdefault((factor, decayed, matrix), set()).add(name)
    return [
        ParameterGroup(
            names=frozenset(names), learning_rate_factor=factor, weight_decay=None if decayed else 0.0, matrices=matrix
        )
        for (factor, decayed, matrix), names in groups.items()
    ]


def refuse_misfits(config: EncoderTrainConfig, tokenizer: VQTokenizer, teacher: CLIP) -> None:
    """ValueError unless size, tokenizer and teacher fit one another."""
    factor = tokenizer.downsample_factor
    if config.image_size % factor:
        raise ValueError(f"got image_size {config.image_size}; {config.tokenizer!r} wants a multiple of {factor}")
    if config.losses.token_weight:
        ours = (config.image_size // factor) ** 2
        theirs = (teacher.config.image_size // teacher.config.vision.patch_size) ** 2
        if ours != theirs:
            counts = f"{ours} tokens with the teacher's {theirs}"
            raise ValueError(f"token_weight compares {counts}; set it to 0, or take a teacher with as many")


def refuse_other_store(config: EncoderTrainConfig, store: StoreInfo, checksums: Mapping[str, str]) -> None:
    """ValueError unless a token store is of this tokenizer, and has what the losses need, of this teacher.

    Args:
        config: names of tokenizer and teacher, and the losses.
        store: what its ids and features are.
        checksums: of the weights of "tokenizer" and "teacher".
    """
    if store.weights_checksum != checksums["tokenizer"]:
        raise ValueError(
            f"the token store was made by {store.tokenizer!r} (sha256 {store.weights_checksum[:16]}), and this is "
            f"{config.tokenizer!r} ({checksums['tokenizer'][:16]}); name the tokenizer of the store"
        )
    if config.losses.token_weight:
        raise ValueError("token_weight needs pixels, and the data is a token store; set it to 0, or read the pictures")
    if config.losses.pooled_weight:
        if store.teacher is None:
            raise ValueError(
                "pooled_weight needs the teacher's features, and the token store has none: encode with --teacher "
                f"{config.teacher}, or set it to 0"
            )
        if store.teacher.weights_checksum != checksums["teacher"]:
            raise ValueError(
                f"the token store has features of another teacher, {store.teacher.model!r} (sha256 "
                f"{store.teacher.weights_checksum[:16]}), than {config.teacher!r} ({checksums['teacher'][:16]}); name "
                "that teacher, or encode again"
            )


def started(config: EncoderTrainConfig, tokenizer: VQTokenizer, teacher: CLIP) -> SemanticEncoder:
    """Return the encoder as a run begins with it."""
    grid, width = (config.image_size // tokenizer.downsample_factor,) * 2, tokenizer.codebook_dim
    encoder = encoder_from_tower(teacher.vision, codebook_dim=width, grid=grid, causal=config.causal)
    encoder = SemanticEncoder(encoder.config) if config.initial_values == "random" else encoder
    encoder.grad_checkpointing = config.grad_checkpointing
    return encoder


def _assembled(
    config: EncoderTrainConfig, trained: EncoderTraining, tokenizer: VQTokenizer, teacher: CLIP, checksum: str
) -> TokLIP:
    """The parts of a run as a TokLIP; nothing is copied but temperature and bias."""
    settings = TokLIPConfig(
        tokenizer=config.tokenizer,
        tokenizer_checksum=checksum,
        image_size=config.image_size,
        resize=config.resize,
        encoder=trained.encoder.config,
        text=teacher.config.text,
    )
    with torch.device("meta"):
        model = TokLIP(settings, tokenizer=tokenizer)
    model.encoder, model.text, model.tokenizer_weights = trained.encoder, teacher.text, config.tokenizer_weights
    model.logit_scale = nn.Parameter(trained.logit_scale.detach()[0].clone())
    bias = torch.zeros(1) if trained.logit_bias is None else trained.logit_bias.detach()
    model.logit_bias = nn.Parameter(bias[0].to(model.logit_scale.device))
    return model


def _one(scalar: Tensor) -> Tensor:
    return scalar.detach().reshape(1).clone()


def _resampled(pixels: Tensor, size: int) -> Tensor:
    """Pixels as the teacher's size, (B, 3, size, size)."""
    if pixels.shape[-1] == size:
        return pixels
    return F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)
