"""What a training run is evaluated on, and the figures: zero-shot accuracy, and retrieval."""

from __future__ import annotations

from dataclasses import dataclass

from toklip_core.devices import Compute
from toklip_core.evaluation import (
    Matcher,
    class_folders,
    measure_retrieval,
    measure_zero_shot,
    refuse_unreadable,
    table_pairs,
    warn_of_unreadable,
)
from toklip_core.pictures import LabelledPictures, LazyPair, labelled_scenes, scene_pairs
from toklip_core.scenes import Scenes
from toklip_core.tasks.settings import HeldOutPictures
from toklip_core.training import Evaluation


@dataclass(frozen=True)
class HeldOutSet:
    """Pictures, unread: those that are told apart by the names of classes, and those that are found by captions."""

    labelled: LabelledPictures | None
    templates: tuple[str, ...]
    captioned: list[LazyPair]


def held_out_set(config: HeldOutPictures, *, image_size: int) -> HeldOutSet | None:
    """Return what the settings name, or None if that is nothing.

    Args:
        config: the settings.
        image_size: side of scenes; pictures become what the model takes when they are read.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is not what it should be, or a picture of it cannot be read.
    """
    if config.scenes:
        single = Scenes(config.scenes, split="held-out", size=image_size, objects=1)
        pairs = scene_pairs(Scenes(config.scenes, split="held-out", size=image_size))
        return HeldOutSet(labelled_scenes(single), ("{}",), pairs)
    if config.classes is None and config.captions is None:
        return None
    labelled = None if config.classes is None else class_folders(config.classes, imagenet=config.imagenet)
    pairs = [] if config.captions is None else table_pairs(config.captions, config.captions.parent)
    refuse_unreadable([*([] if labelled is None else labelled.pictures), *(pair.picture for pair in pairs)])
    return HeldOutSet(labelled, ("a photo of a {}.",), pairs)


def evaluate_matcher(model: Matcher, held_out: HeldOutSet, *, batch_size: int = 32) -> Evaluation:
    """Return top-1 accuracy and R@1 in both directions, each if there is something to measure it on.

    Of several processes each measures all of it: none waits for another's share, and a sharded model is called equally
    often in all of them.

    Args:
        model: in eval mode.
        held_out: what it has not seen.
        batch_size: pictures at a time.

    Raises:
        ValueError: a feature is not finite, or no picture can be read.
    """
    figures: dict[str, float] = {}
    unreadable: tuple[str, ...] = ()
    if held_out.labelled is not None:
        report = measure_zero_shot(model, held_out.labelled, held_out.templates, Compute(batch_size=batch_size))
        figures["zero_shot_top1"] = report.top1
        unreadable += report.unreadable
    if held_out.captioned:
        recall = measure_retrieval(model, held_out.captioned, Compute(batch_size=batch_size))
        figures["image_to_text_r1"] = recall.image_to_text["R@1"]
        figures["text_to_image_r1"] = recall.text_to_image["R@1"]
        unreadable += recall.unreadable
    warn_of_unreadable(unreadable)
    return Evaluation(figures)
