"""``toklip train teacher``: trains a small CLIP on pixels from scratch, for use without published teachers."""

from __future__ import annotations

import hashlib
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
from toklip_core.tasks.encoder import clamp_logit_scale, contrast, warn_of_cut_captions
from toklip_core.tasks.held_out import evaluate_matcher, held_out_set
from toklip_core.tasks.settings import TeacherTrainConfig
from toklip_core.training import FitReport, Losses, ParameterGroup, Task, fit, parameter_groups


def train_teacher(config: TeacherTrainConfig, out: Path) -> FitReport:
    """Train a CLIP into the folder ``out``, or resume the run there; see :func:`toklip_core.training.fit`.

    The model folder ``out/model`` is a teacher: :func:`toklip_core.model.load_clip` takes it.

    Raises:
        FileNotFoundError: data are missing.
        ValueError: data are a token store, or ``fit`` raises it.
        LookupError, OSError: raised by ``fit``.
    """
    task = TeacherTask(config)
    report = fit(task, config.run, out)
    warn_of_cut_captions(task.cut, task.tokenizer.config.context_length)
    return report


class TeacherTask(Task):
    """Learn what pictures and captions have in common: both towers of a CLIP, from nothing, by contrast.

    Nothing is frozen but the text tokenizer, whose vocabulary is taken from the captions.

    Args:
        config: settings of the run.

    Raises:
        FileNotFoundError: data are missing.
        ValueError: data are a token store, or do not fit the settings.
    """

    collate = staticmethod(collate)

    def __init__(self, config: TeacherTrainConfig) -> None:
        held_out = held_out_set(config.held_out, image_size=config.image_size)
        self.samples = CaptionedSamples(
            config.data,
            image_size=config.image_size,
            resize=config.resize,
            seed=config.run.seed,
            smallest_crop_area=config.smallest_crop_area,
        )
        if self.samples.stored is not None:
            raise ValueError("a teacher sees pixels, and the data is a token store; read the pictures themselves")
        self.order = self.samples.order
        self.config, self.tokenizer = config, text_tokenizer(config, self.samples)
        # With other captions a resumed run would give the trained embeddings to other words.
        vocabulary = hashlib.sha256(str(self.tokenizer.json).encode()).hexdigest()
        self.settings = {**config.model_dump(mode="json", exclude={"run"}), "vocabulary": vocabulary}
        torch.manual_seed(config.run.seed)
        self.model = self._beginning()
        self.contrast = partial(contrast, kind=config.contrast, weight=1.0)
        if held_out is not None:
            self.evaluate = lambda product: evaluate_matcher(cast(TeacherTraining, product).assemble(), held_out)
        #: Number of captions of this process that were too long for the text tower.
        self.cut = 0

    def prepare(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return RGB values (B, 3, S, S), uint8, and ids (B, L) of the captions."""
        ids = self.tokenizer(batch["captions"])
        self.cut += self.tokenizer.warn_of_cut(batch["captions"], ids)
        return batch["rgb"], ids.to(batch["rgb"].device)

    def objective(self, model: nn.Module, prepared: tuple[Tensor, Tensor], step: int) -> Losses:
        """Return the vectors for the contrast."""
        rgb, ids = prepared
        return cast(Losses, model(normalized(rgb), ids))

    def export(self, tensors: dict[str, Tensor], folder: Path) -> None:
        """Write a CLIP."""
        result = self._beginning()
        result.load_state_dict(tensors)
        result.assemble().save_pretrained(folder)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return groups for both towers and the temperature."""
        return parameter_groups(self.model)

    def after_step(self, model: nn.Module) -> None:
        """Keep the temperature in CLIP's bounds."""
        clamp_logit_scale(model)

    def _beginning(self) -> TeacherTraining:
        """Return the model with its initial weights."""
        config = self.config
        settings = CLIPConfig(
            image_size=config.image_size, resize=config.resize, vision=config.vision, text=self.tokenizer.config
        )
        return TeacherTraining(CLIP(settings, self.tokenizer), config.contrast)


class TeacherTraining(nn.Module):
    """Both towers and the temperature; the forward pass returns the vectors for the contrast.

    Args:
        clip: CLIP to train, with the initial temperature and bias.
        contrast: kind of contrast; only the sigmoid trains the bias.
    """

    def __init__(self, clip: CLIP, contrast: Literal["softmax", "sigmoid"]) -> None:
        super().__init__()
        # A tuple, because as an attribute its parameters would be registered twice.
        self._clip = (clip,)
        self.vision, self.text = clip.vision, clip.text
        #: (1,) each, because FSDP shards no scalars.
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

    def assemble(self) -> CLIP:
        """Return the towers as a CLIP; only temperature and bias are copied."""
        clip = self._clip[0]
        clip.logit_scale = nn.Parameter(self.logit_scale.detach()[0].clone())
        clip.logit_bias = nn.Parameter(self.logit_bias.detach()[0].clone())
        return clip


def text_tokenizer(config: TeacherTrainConfig, samples: CaptionedSamples) -> TextTokenizer:
    """Return a word tokenizer with the words of ``config.text.captions`` captions from all over the data.

    If captions are only known with their pictures, that number of pictures is read.
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
