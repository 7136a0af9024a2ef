"""``toklip train teacher``: a small CLIP on pixels, from nothing, where no teacher can be downloaded."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toklip_core.captioned import Batch, CaptionedSamples, collate
from toklip_core.model import CLIP, EOS_ID, PAD_ID, CLIPConfig, TextConfig, TextTokenizer, word_tokenizer
from toklip_core.pictures import normalized
from toklip_core.tasks.encoder import clamp_logit_scale, contrast, parameter_groups, warn_of_cut_captions
from toklip_core.tasks.held_out import evaluated, held_out_set
from toklip_core.tasks.settings import TeacherTrainConfig
from toklip_core.training import FitReport, Losses, fit


def train_teacher(config: TeacherTrainConfig, out: Path) -> FitReport:
    """Train a CLIP into ``out``, or go on with the run there; see :func:`toklip_core.training.fit`.

    The model folder ``out/model`` is a teacher: :func:`toklip_core.model.load_clip` takes it.

    Raises:
        FileNotFoundError: data are not there.
        ValueError: they are a token store, or as ``fit``.
        LookupError, OSError: as ``fit``.
    """
    held_out = held_out_set(config.held_out, image_size=config.image_size)
    samples = CaptionedSamples(
        config.data,
        image_size=config.image_size,
        resize=config.resize,
        seed=config.run.seed,
        smallest_crop=config.smallest_crop,
    )
    if samples.stored is not None:
        raise ValueError("a teacher sees pixels, and the data is a token store; read the pictures themselves")
    tokenizer = text_tokenizer(config, samples)
    settings = CLIPConfig(
        image_size=config.image_size, resize=config.resize, vision=config.vision, text=tokenizer.config
    )
    torch.manual_seed(config.run.seed)
    model = TeacherTraining(CLIP(settings, tokenizer), config.contrast)

    def export(tensors: dict[str, Tensor], folder: Path) -> None:
        result = TeacherTraining(CLIP(settings, tokenizer), config.contrast)
        result.load_state_dict(tensors)
        result.assembled().save_pretrained(folder)

    cut = 0

    def objective(model: nn.Module, batch: Batch, step: int) -> Losses:
        nonlocal cut
        pixels, ids = normalized(batch["pixels"]), tokenizer(batch["captions"])
        if torch.is_grad_enabled():  # a batch may come before without gradients
            cut += tokenizer.warn_of_cut(batch["captions"], ids)
        return cast(Losses, model(pixels, ids.to(pixels.device)))

    report = fit(
        model,
        samples,
        objective,
        config.run,
        out,
        settings={**config.model_dump(mode="json", exclude={"run"}), "samples": len(samples)},
        export=export,
        evaluate=None
        if held_out is None
        else lambda product: evaluated(cast(TeacherTraining, product).assembled(), held_out),
        groups=parameter_groups(model),
        order=samples.order,
        collate=collate,
        contrast=partial(contrast, kind=config.contrast, weight=1.0),
        after_step=clamp_logit_scale,
    )
    warn_of_cut_captions(cut, tokenizer.config.context_length)
    return report


class TeacherTraining(nn.Module):
    """Both towers and the temperature; the forward pass gives the features that are contrasted.

    Args:
        clip: what is trained. Its temperature and bias are taken over.
        contrast: the bias is the sigmoid's, and frozen for softmax.
    """

    def __init__(self, clip: CLIP, contrast: Literal["softmax", "sigmoid"]) -> None:
        super().__init__()
        # In a tuple: as an attribute its parameters would be the model's twice.
        self._clip = (clip,)
        self.vision, self.text = clip.vision, clip.text
        #: (1,) each: FSDP shards no scalar.
        self.logit_scale = nn.Parameter(clip.logit_scale.detach().reshape(1).clone())
        self.logit_bias = nn.Parameter(clip.logit_bias.detach().reshape(1).clone(), contrast == "sigmoid")

    def forward(self, pixels: Tensor, ids: Tensor) -> Losses:
        """Return the features of pixels (B, 3, S, S) in [-1, 1], and ids (B, L) of their captions."""
        features = {
            "image": self._clip[0].image_features(pixels),
            "text": F.normalize(self.text(ids).float(), dim=-1),
            "logit_scale": self.logit_scale[0],
        }
        if self.logit_bias.requires_grad:
            features["logit_bias"] = self.logit_bias[0]
        return Losses({}, {"logit_scale": self.logit_scale.detach().exp().mean()}, features)

    def assembled(self) -> CLIP:
        """Return the parts as a CLIP; nothing is copied but temperature and bias."""
        clip = self._clip[0]
        clip.logit_scale = nn.Parameter(self.logit_scale.detach()[0].clone())
        clip.logit_bias = nn.Parameter(self.logit_bias.detach()[0].clone())
        return clip


def text_tokenizer(config: TeacherTrainConfig, samples: CaptionedSamples) -> TextTokenizer:
    """Return a tokenizer of the whole words of ``config.text.captions`` captions, from all over the data.

    Where captions are not known without their pictures, so many pictures are read.
    """
    known = samples.distinct_captions()
    stride = math.ceil((len(samples) if known is None else len(known)) / config.text.captions)
    captions = (
        [samples[0, index]["caption"] for index in range(0, len(samples), stride)]
        if known is None
        else known[::stride]
    )
    json, words = word_tokenizer(captions)
    text = TextConfig(
        context_length=config.text.context_length,
        vocabulary=words,
        width=config.text.width,
        heads=config.text.heads,
        layers=config.text.layers,
        pooling="eos",
        pad_mask=True,
        output_dim=config.vision.trunk.joint_dim,
        eos_id=EOS_ID,
        pad_id=PAD_ID,
    )
    return TextTokenizer(text, json)
