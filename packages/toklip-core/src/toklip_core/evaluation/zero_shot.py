"""Zero-shot classification: accuracy over labelled pictures, and labels of single pictures.

The vector of a class is the normalised mean over templates of the unit vectors of its name. A picture gets the class
with the largest cosine.

Source: Radford et al., CLIP, https://arxiv.org/abs/2103.00020, section 3.1.4; open_clip, zero_shot_classifier.py.

Shape letters: T templates, C classes, E joint space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from toklip_core.config import Compute
from toklip_core.evaluation.classes import class_folders, described_templates, known_templates, refuse_duplicates
from toklip_core.evaluation.matcher import (
    TIES,
    Matcher,
    cut_protocol,
    hit_chances,
    load_matcher,
    picture_features,
    refuse_cut_texts,
    text_features,
    warn_of_other_pictures,
)
from toklip_core.evaluation.report import report_text, software
from toklip_core.model import OF_SCENES
from toklip_core.pictures import LabelledPictures, find_pictures, list_pictures
from toklip_core.scenes import parse_scenes

#: Largest difference between numbers of two vectors that are one, and number of vectors that are compared at a time.
_ROUNDING, _COMPARED = 1e-6, 1024


@dataclass(frozen=True, kw_only=True)
class ZeroShotReport:
    """Accuracy over labelled pictures, with the protocol of the measurement."""

    #: Shares of pictures whose class comes first, and among the first five.
    top1: float
    top5: float
    #: Accuracy of a model with equal scores for all classes.
    chance_top1: float
    chance_top5: float
    #: Protocol of the measurement.
    protocol: dict[str, str | int]
    #: Pictures that cannot be read, with the reason; no figure includes them.
    unreadable: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON data."""
        return asdict(self)

    def as_text(self) -> str:
        """Return the report as a table for people."""
        rows = [("top-1", self.top1, self.chance_top1), ("top-5", self.top5, self.chance_top5)]
        figures = [(name, f"{value:.2%}", f"(chance {chance:.2%})") for name, value, chance in rows]
        return report_text(figures, self.protocol, self.unreadable)


class Guess(NamedTuple):
    """A label of a picture."""

    label: str
    #: Softmax over all labels, in [0, 1].
    probability: float
    cosine: float


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Labels of pictures, with the protocol."""

    #: Picture -> its best labels, best first.
    pictures: dict[str, tuple[Guess, ...]]
    protocol: dict[str, str | int]
    #: Pictures that cannot be read, with the reason.
    unreadable: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON data."""
        rows = [
            {"picture": name, "labels": [guess._asdict() for guess in guesses]}
            for name, guesses in self.pictures.items()
        ]
        return {"pictures": rows, "protocol": self.protocol, "unreadable": list(self.unreadable)}

    def as_text(self) -> str:
        """Return the report as text: for each picture a line with its name, and one for each label."""
        lines = []
        for name, guesses in self.pictures.items():
            lines += [name, *(f"  {guess.probability:7.2%}  {guess.label}" for guess in guesses)]
        return "\n".join(lines)


def evaluate_zero_shot(
    name: Path | str,
    folder: Path | str,
    *,
    imagenet: bool = False,
    templates: Sequence[str] = (),
    compute: Compute = Compute(),
) -> ZeroShotReport:
    """Measure the accuracy of a model on a folder of classes or scenes, as ``toklip evaluate zero-shot`` does.

    Args:
        name: name or folder of a TokLIP or CLIP, see :func:`toklip_core.model.load_model`.
        folder: folder of classes, see :func:`class_folders`; or scenes of one object, such as
            ``scenes:held-out?count=256&objects=1``, with all 64 CLASSES as candidates.
        imagenet: whether the folders are the 1000 classes of ImageNet, which get open_clip's names.
        templates: templates of the names, see :func:`known_templates`; by default '{}' for scenes, open_clip's 80 for
            ImageNet, and otherwise 'a photo of a {}.'.
        compute: device, number of pictures at a time, and dtype of both towers; a VQ tokenizer stays in float32.

    Raises:
        FileNotFoundError: the folder or a file of the model is not there, or there is no picture.
        LookupError: there is no such model, or it has no text tower.
        ValueError: an argument does not fit, or no picture can be read.
    """
    found = class_folders(folder, imagenet=imagenet, max_pixels=compute.max_pixels)
    usual = "openai" if imagenet else "{}" if parse_scenes(folder) else "a photo of a {}."
    chosen = known_templates(templates or [usual])
    model, protocol = load_matcher(name, compute, checksums=True)
    report = measure_zero_shot(model, found, chosen, compute)
    return replace(report, protocol={**protocol, "inputs": str(folder), **report.protocol})


def measure_zero_shot(
    model: Matcher, labelled: LabelledPictures, templates: Sequence[str], compute: Compute = Compute()
) -> ZeroShotReport:
    """Return the accuracy of a model over labelled pictures; see :func:`evaluate_zero_shot`."""
    names = list(dict.fromkeys(labelled.names))
    column = {name: place for place, name in enumerate(names)}
    columns = torch.tensor([column[name] for name in labelled.names])
    classes = class_features(model, names, templates, progress=compute.progress)
    labels, every = torch.tensor(labelled.labels), torch.arange(len(columns))
    unreadable: list[str] = []
    hits = []
    for places, features in picture_features(model, labelled.pictures, unreadable, compute):
        # Columns are copied, so that equal names have exactly equal scores.
        scores = (features @ classes.T).cpu()[:, columns]
        hits.append(hit_chances(scores, labels[places, None] == every, (1, 5)))
    top1, top5 = torch.cat(hits).mean(0).tolist()
    return ZeroShotReport(
        top1=top1,
        top5=top5,
        chance_top1=1 / len(columns),
        chance_top5=min(1.0, 5 / len(columns)),
        protocol={
            "pictures": sum(map(len, hits)),
            "classes": len(columns),
            "templates": described_templates(templates),
            **cut_protocol(model, _in_templates(names, templates)),
            "ties": TIES,
            "software": software(),
        },
        unreadable=tuple(unreadable),
    )


def classify_pictures(
    name: Path | str,
    inputs: Sequence[Path | str],
    labels: Sequence[str],
    *,
    templates: Sequence[str] = (),
    top: int = 5,
    compute: Compute = Compute(),
) -> Classification:
    """Return the labels of pictures, as ``toklip classify`` does.

    The probability of a label is the softmax over all labels of the cosines times the exponential of the model's own
    logit scale.

    Args:
        name: name or folder of the model.
        inputs: files, folders, globs, tars, scenes; see :func:`toklip_core.pictures.find_pictures`.
        labels: distinct texts.
        templates: templates of the labels, see :func:`known_templates`; by default labels are used as they are.
        top: number of labels per picture.
        compute: device, and number of pictures at a time.

    Raises:
        FileNotFoundError: an input or a file of the model is not there.
        LookupError: there is no such model, or it has no text tower.
        ValueError: there are no labels, or two are alike, or one is longer than the model reads, or no picture can be
            read.
    """
    labels = refuse_duplicates(labels, "label")
    chosen = known_templates(templates or ["{}"])
    sources = find_pictures(inputs, max_pixels=compute.max_pixels)
    pictures = list_pictures(sources, progress=compute.progress)
    model, protocol = load_matcher(name, compute)
    refuse_cut_texts(model, _in_templates(labels, chosen))
    classes = class_features(model, labels, chosen, progress=compute.progress)
    if alike := _alike(classes):
        one, other = (labels[row] for row in alike)
        raise ValueError(f"the model reads {one!r} and {other!r} alike; give labels that it knows")
    scale = model.logit_scale.detach().float().exp()
    unreadable: list[str] = []
    found: dict[str, tuple[Guess, ...]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for places, features in picture_features(model, pictures, unreadable, compute, sizes):
        cosines = features @ classes.T
        for place, row, shares in zip(places, cosines, (scale * cosines).softmax(1), strict=True):
            best = shares.topk(min(top, len(labels)))
            guesses = zip(best.indices.tolist(), best.values.tolist(), row[best.indices].tolist(), strict=True)
            found[pictures[place].name] = tuple(Guess(labels[i], share, cosine) for i, share, cosine in guesses)
    if name in OF_SCENES:
        scenes = {source.key for source in sources if source.scene is not None}
        others = [(picture, size) for picture, size in sizes.items() if picture not in scenes]
        warn_of_other_pictures(str(name), others, side=model.config.image_size)
    own = {
        "templates": described_templates(chosen),
        "probability": f"softmax over {len(labels)} labels of {scale.item():.4g} x cosine",
        "software": software(),
    }
    return Classification(pictures=found, protocol={**protocol, **own}, unreadable=tuple(unreadable))


@torch.no_grad()
def class_features(
    model: Matcher, names: Sequence[str], templates: Sequence[str], *, progress: bool = False
) -> Tensor:
    """Return the vectors (C, E), unit norm, of C classes: the normalised mean over templates of their unit vectors.

    Args:
        model: model on its device.
        names: distinct names.
        templates: distinct templates with {} in place of the name.
        progress: show a progress bar on stderr if that is a terminal.
    """
    found = text_features(model, _in_templates(names, templates), progress=progress)
    return F.normalize(found.reshape(len(names), len(templates), -1).mean(1), dim=-1)


def _alike(vectors: Tensor) -> tuple[int, int] | None:
    """Return the first two rows of vectors (L, E) that are equal within rounding, the earlier one first."""
    vectors = vectors.float().cpu()
    for start in range(0, len(vectors), _COMPARED):
        end = start + _COMPARED
        # Rows of one batch differ by rounding, even where their texts are the same to the model.
        alike = torch.cdist(vectors[start:end], vectors[:end], p=torch.inf) <= _ROUNDING
        pairs = alike.tril(start - 1).nonzero()
        if len(pairs):
            row, other = pairs[0].tolist()
            return other, start + row
    return None


def _in_templates(names: Sequence[str], templates: Sequence[str]) -> list[str]:
    return [template.replace("{}", name) for name in names for template in templates]
