"""Held-out data of a training run, and its figures: zero-shot accuracy and retrieval."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from toklip_core.evaluation import (
    Matcher,
    class_folders,
    karpathy_pairs,
    measure_retrieval,
    measure_zero_shot,
    refuse_unreadable,
    table_pairs,
    warn_of_unreadable,
)
from toklip_core.pictures import LabelledPictures, LazyPair, labelled_scenes, scene_pairs
from toklip_core.scenes import Scenes, parse_scenes
from toklip_core.tasks.settings import HeldOutPictures
from toklip_core.training import Evaluation


@dataclass(frozen=True)
class HeldOutSet:
    """Held-out pictures, read on demand: labelled ones for zero-shot accuracy, and captioned ones for retrieval."""

    labelled: LabelledPictures | None
    templates: tuple[str, ...]
    captioned: list[LazyPair]


def held_out_set(config: HeldOutPictures, *, image_size: int) -> HeldOutSet | None:
    """Return the held-out data of the settings, or None if they name none.

    Args:
        config: settings of the held-out data.
        image_size: side of scenes; other pictures are resized for the model when they are read.

    Raises:
        FileNotFoundError: data are missing.
        ValueError: data are malformed, or a picture cannot be read.
    """
    if config.scenes:
        single = Scenes(config.scenes, split="held-out", size=image_size, objects=1)
        pairs = scene_pairs(Scenes(config.scenes, split="held-out", size=image_size))
        return HeldOutSet(labelled_scenes(single), ("{}",), pairs)
    if config.classes is None and config.captions is None:
        return None
    labelled = None if config.classes is None else class_folders(config.classes, imagenet=config.imagenet)
    pairs = [] if config.captions is None else _pairs(config.captions)
    refuse_unreadable([*([] if labelled is None else labelled.pictures), *(pair.picture for pair in pairs)])
    of_scenes = config.classes is not None and parse_scenes(config.classes) is not None
    return HeldOutSet(labelled, ("{}",) if of_scenes else ("a photo of a {}.",), pairs)


def _pairs(captions: Path) -> list[LazyPair]:
    scenes = parse_scenes(captions)
    if scenes is not None:
        return scene_pairs(scenes)
    if captions.suffix.lower() == ".json":
        return karpathy_pairs(captions, "val", captions.parent)
    return table_pairs(captions, captions.parent)


def evaluate_matcher(model: Matcher, held_out: HeldOutSet) -> Evaluation:
    """Return top-1 accuracy and R@1 in both directions, each if there are data for it.

    Every process measures all data, because a sharded model must be called equally often in all processes.

    Args:
        model: model in evaluation mode.
        held_out: held-out data.

    Raises:
        ValueError: a vector is not finite, or no picture can be read.
    """
    figures: dict[str, float] = {}
    unreadable: tuple[str, ...] = ()
    if held_out.labelled is not None:
        report = measure_zero_shot(model, held_out.labelled, held_out.templates)
        figures["zero_shot_top1"] = report.top1
        unreadable += report.unreadable
    if held_out.captioned:
        recall = measure_retrieval(model, held_out.captioned)
        figures["image_to_text_r1"] = recall.image_to_text["R@1"]
        figures["text_to_image_r1"] = recall.text_to_image["R@1"]
        unreadable += recall.unreadable
    warn_of_unreadable(unreadable)
    return Evaluation(figures)
