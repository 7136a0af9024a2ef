"""``toklip evaluate generation``: measures the quality of drawn pictures, and their match with captions.

    pictures: files, an .npz, or a generator that draws them -extractor-> features
    features, and those of a reference -> Fréchet distance, Inception score, precision, recall
    pictures with captions -a CLIP-> CLIP score;  captions of Scenes -> :mod:`toklip_gen.evaluation.scene_match`

A report has the figures and their protocol.

Shape letters: B pictures at a time, H and W sides, n pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from toklip_core.config import MAX_PIXELS, Compute, refuse_missing_device
from toklip_core.evaluation import Matcher, cut_protocol, load_matcher, report_text
from toklip_core.files import refuse_special, why_unreadable
from toklip_core.pictures import READING_ERRORS, entries, find_pictures, refuse_output
from torch import Tensor
from tqdm import tqdm

from toklip_gen.evaluation.adm_npz import SampleWriter, read_samples
from toklip_gen.evaluation.frechet import (
    INCEPTION,
    Extractor,
    Moments,
    frechet_distance,
    inception_score,
    load_extractor,
    moments,
    pixels_for,
    precision_recall,
)
from toklip_gen.evaluation.references import Reference, ReferenceInfo, load_reference, write_reference
from toklip_gen.evaluation.scene_match import Match, shares_table


class PictureWithCaption(NamedTuple):
    """A picture to measure, with its caption."""

    #: (3, H, W), uint8.
    rgb: Tensor
    #: Caption that the picture should match, or None.
    caption: str | None


@dataclass(frozen=True, kw_only=True)
class GenerationReport:
    """Figures of drawn pictures, with the protocol of the measurement. A figure that is left out is None."""

    pictures: int
    #: Fréchet distance between the reference and the pictures; it is an FID only if the extractor is Inception.
    frechet: float | None = None
    inception_score: float | None = None
    precision: float | None = None
    recall: float | None = None
    #: Mean over pictures of 100 max(0, cos) between picture and caption.
    clip_score: float | None = None
    #: Judge -> pictures -> shares.
    match: dict[str, dict[str, Match]] = field(default_factory=dict)
    #: Missing figure -> reason, and how to get it.
    left_out: dict[str, str] = field(default_factory=dict)
    protocol: dict[str, str | int] = field(default_factory=dict)
    unreadable: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON data."""
        return asdict(self)

    def as_text(self) -> str:
        """Return a table for people: figures, then the protocol, then what could not be read."""
        name = "FID" if self.protocol.get("extractor") == INCEPTION else "Fréchet distance"
        figures = {
            name: (self.frechet, "frechet"),
            "Inception score": (self.inception_score, "inception_score"),
            "precision": (self.precision, "precision"),
            "recall": (self.recall, "recall"),
            "CLIP score": (self.clip_score, "clip_score"),
        }
        rows = [
            [label, f"{value:.4g}" if value is not None else f"left out: {self.left_out[key]}"]
            for label, (value, key) in figures.items()
            if value is not None or key in self.left_out
        ]
        text = report_text(rows or [["pictures", str(self.pictures)]], self.protocol, self.unreadable)
        if not self.match:
            return text
        table = shares_table(self.match)
        widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
        lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in table]
        return "\n".join([*lines, "", text])


def measure_pictures(
    pictures: Iterable[PictureWithCaption],
    *,
    extractor: Extractor | None = None,
    reference: Reference | None = None,
    clip: Matcher | None = None,
    npz: SampleWriter | None = None,
    batch_size: int = 32,
) -> GenerationReport:
    """Return figures of pictures, in one pass.

    Args:
        pictures: pictures, all of the same size.
        extractor: extractor for all figures but the CLIP score; None leaves these out.
        reference: reference of the extractor, for Fréchet distance, precision and recall; None leaves these out.
        clip: model for the CLIP score, which needs captions; None leaves it out.
        npz: writer that also gets the pictures; None: no file.
        batch_size: number of pictures at a time.

    Raises:
        ValueError: there are fewer than two pictures, or their sizes differ from each other or from the reference.
    """
    gathered = gather(pictures, extractor=extractor, reference=reference, clip=clip, npz=npz, batch_size=batch_size)
    if gathered.pictures < 2:
        raise ValueError(f"got {gathered.pictures} pictures; a figure needs two at least")
    found: dict[str, Any] = {"pictures": gathered.pictures}
    left_out: dict[str, str] = {}
    protocol: dict[str, str | int] = {
        "pictures": f"{gathered.pictures} of {gathered.size[0]} x {gathered.size[1]}, 8 bits"
    }
    if extractor is not None:
        protocol |= {"extractor": extractor.name, "seen": extractor.how, "network": extractor.weights}
        if gathered.logits is not None:
            found["inception_score"] = inception_score(gathered.logits)
            protocol["inception score"] = "mean over ten parts of the shuffled pictures"
        if reference is not None:
            found |= _compared(gathered, reference, left_out, protocol)
    if clip is not None:
        if gathered.scores is None:
            left_out["clip_score"] = "not every picture has a caption: put KEY.txt beside KEY.png"
        else:
            found["clip_score"] = float(100 * gathered.scores.clamp_min(0).mean())
            protocol["clip score"] = "mean of 100 max(0, cos) between picture and caption"
            if gathered.size[0] != gathered.size[1]:
                protocol["clip resize"] = clip.config.resize
            protocol |= cut_protocol(clip, gathered.captions)
    protocol["software"] = ", ".join(f"{name} {version(name)}" for name in ("toklip-gen", "torch"))
    return GenerationReport(**found, left_out=left_out, protocol=protocol)


class Measurements(NamedTuple):
    """Results of one pass over n pictures."""

    pictures: int
    size: tuple[int, int]
    #: (n, D); empty without an extractor.
    features: Tensor
    #: (n, 1008), only for Inception.
    logits: Tensor | None
    #: (n,), cosines of pictures and captions; None if a caption is missing, or without a CLIP.
    scores: Tensor | None
    #: Captions that were compared.
    captions: Sequence[str] = ()


def refuse_other_size(
    size: tuple[int, int], reference: Reference, *, way_out: str = "resize them before, as published figures do"
) -> None:
    """Raise ValueError unless pictures of this height and width can be compared with a reference."""
    side = reference.info.image_size
    if size != (side, side):
        raise ValueError(f"got pictures of {size[0]} x {size[1]}, and the reference is of {side} x {side}: {way_out}")


def gather(
    pictures: Iterable[PictureWithCaption],
    *,
    extractor: Extractor | None = None,
    reference: Reference | None = None,
    clip: Matcher | None = None,
    npz: SampleWriter | None = None,
    batch_size: int = 32,
) -> Measurements:
    """Return features of pictures, and their cosines with captions; see :func:`measure_pictures`."""
    features: list[Tensor] = []
    logits: list[Tensor] = []
    scores: list[Tensor] = []
    compared: list[str] = []
    count, size, captioned = 0, (0, 0), True
    for batch in _batches(pictures, batch_size):
        rgb = torch.stack([picture.rgb for picture in batch])
        if count and tuple(rgb.shape[-2:]) != size:
            raise ValueError(f"got pictures of {size} and {tuple(rgb.shape[-2:])}; resize them to one size")
        size = (rgb.shape[-2], rgb.shape[-1])
        if reference is not None:  # with the first pictures instead of after the last
            refuse_other_size(size, reference)
        count += len(batch)
        if npz is not None:
            npz.add(rgb.movedim(1, -1).numpy())
        if extractor is not None:
            seen = extractor(rgb)
            features.append(seen.features)
            logits += [] if seen.logits is None else [seen.logits]
        captions = [picture.caption for picture in batch if picture.caption]
        captioned &= len(captions) == len(batch)
        if clip is not None and captioned:
            scores.append(_cosines(clip, rgb, captions))
            compared += captions
    whole = torch.cat(features) if features else torch.empty(count, 0)
    judged = torch.cat(scores) if scores and captioned else None
    return Measurements(count, size, whole, torch.cat(logits) if logits else None, judged, compared)


def read_pictures(
    inputs: Sequence[Path | str], unreadable: list[str], *, max_pixels: int = MAX_PIXELS
) -> Iterator[PictureWithCaption]:
    """Yield pictures of files, folders, globs, tars and .npz files in their own size, with the captions beside them.

    Raises:
        FileNotFoundError: an input is missing.
        ValueError: an .npz has no pictures, or no picture can be read.
    """
    readable = False
    archives = [Path(item) for item in inputs if str(item).endswith(".npz")]
    for path in archives:
        refuse_special(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {str(path)!r}")
        for sample in read_samples(path):
            readable = True
            yield PictureWithCaption(torch.from_numpy(sample.copy()).movedim(-1, 0), None)
    rest = [item for item in inputs if not str(item).endswith(".npz")]
    for entry in entries(find_pictures(rest, max_pixels=max_pixels)) if rest else ():
        try:
            rgb = torch.from_numpy(np.array(entry.image())).movedim(-1, 0)
            caption = entry.caption()
        except READING_ERRORS as error:
            unreadable.append(f"{entry.key}: {why_unreadable(error)}")
        else:
            readable = True
            yield PictureWithCaption(rgb, caption)
    if unreadable and not readable:
        raise ValueError(f"none of {len(unreadable)} pictures can be read; the first is {unreadable[0]}")


@dataclass(frozen=True)
class Measures:
    """Networks and reference for measuring pictures."""

    #: Extractor of features, see :func:`toklip_gen.evaluation.load_extractor`; None: only the CLIP score is measured.
    extractor: str | None = INCEPTION
    #: Statistics of real pictures, see :func:`toklip_gen.evaluation.load_reference`; they need the extractor.
    reference: Path | str | None = None
    #: CLIP or TokLIP that judges captions, see :func:`toklip_core.evaluation.load_matcher`.
    clip: str | None = None

    @property
    def files(self) -> list[Path | str]:
        """Return the files that are read, which must not be overwritten."""
        return [] if self.reference is None else [self.reference]

    def load_comparison(self, device: torch.device | str) -> tuple[Extractor | None, Reference | None]:
        """Load the extractor and the reference.

        Raises:
            FileNotFoundError, LookupError: one of them is missing.
            ValueError: they do not fit one another.
        """
        if self.extractor is None:
            if self.reference is not None:
                raise ValueError("got a reference, but no extractor to compare pictures with it by; name one")
            return None, None
        extractor = load_extractor(self.extractor, device)
        return extractor, None if self.reference is None else load_reference(self.reference, extractor)

    def load_judge(self, device: torch.device | str) -> tuple[Matcher | None, dict[str, str]]:
        """Load the CLIP or TokLIP, if there is one, and return it with its entries in the protocol.

        Raises:
            FileNotFoundError, LookupError, ValueError: see :func:`toklip_core.evaluation.load_matcher`.
        """
        return (None, {}) if self.clip is None else load_matcher(self.clip, Compute(device=device), checksums=True)


def evaluate_pictures(
    inputs: Sequence[Path | str],
    measures: Measures = Measures(),
    *,
    npz: Path | str | None = None,
    compute: Compute = Compute(),
) -> GenerationReport:
    """Measure pictures in files, as ``toklip evaluate generation INPUTS`` does.

    Args:
        inputs: files, folders, globs, tars, or .npz files of ADM's evaluator.
        measures: networks and reference.
        npz: file to write the pictures to as well, for ADM's evaluator.
        compute: device, and number of pictures at a time; networks always compute in float32.

    Raises:
        FileNotFoundError, LookupError, ValueError: an input, the reference or a network is missing or does not fit.
    """
    refuse_missing_device(compute.device)
    if npz is not None:
        refuse_output(npz, [*inputs, *measures.files], option="--npz", suffixes=[".npz"])
    extractor, known = measures.load_comparison(compute.device)
    matcher, of_clip = measures.load_judge(compute.device)
    unreadable: list[str] = []
    found = read_pictures(inputs, unreadable, max_pixels=compute.max_pixels)
    pictures = tqdm(found, unit=" pictures", disable=None if compute.progress else True)
    with nullcontext() if npz is None else SampleWriter(npz) as writer:
        report = measure_pictures(
            pictures, extractor=extractor, reference=known, clip=matcher, npz=writer, batch_size=compute.batch_size
        )
    protocol = {"inputs": " ".join(map(str, inputs)), **report.protocol}
    if of_clip:
        protocol["clip"] = f"{of_clip['model']}, {of_clip['weights']}"
    return GenerationReport(**vars(report) | {"protocol": protocol, "unreadable": tuple(unreadable)})


def write_reference_of(
    inputs: Sequence[Path | str],
    path: Path | str,
    *,
    extractor: str = INCEPTION,
    compute: Compute = Compute(),
) -> ReferenceInfo:
    """Write the statistics of real pictures, as ``toklip evaluate generation INPUTS --write-reference`` does.

    Raises:
        FileNotFoundError, LookupError, ValueError: see :func:`evaluate_pictures`.
    """
    refuse_missing_device(compute.device)
    refuse_output(path, inputs, option="--write-reference", suffixes=[".npz"])
    network = load_extractor(extractor, compute.device)
    unreadable: list[str] = []
    read = _all_square(read_pictures(inputs, unreadable, max_pixels=compute.max_pixels), unreadable)
    with closing(tqdm(read, unit=" pictures", disable=None if compute.progress else True)) as bar:
        found = gather(bar, extractor=network, batch_size=compute.batch_size)
    info = ReferenceInfo(
        extractor=network.name,
        weights=network.weights,
        image_size=found.size[0],
        pictures=found.pictures,
        source=" ".join(map(str, inputs)),
    )
    write_reference(path, found.features, info)
    return info


def _compared(
    gathered: Measurements, reference: Reference, left_out: dict[str, str], protocol: dict[str, str | int]
) -> dict[str, float]:
    """Return Fréchet distance, precision and recall."""
    drawn: Moments = moments(gathered.features)
    found = {"frechet": frechet_distance(reference.moments, drawn)}
    protocol["reference"] = reference.described
    width = gathered.features.shape[1]
    if gathered.pictures <= width:
        protocol["warning"] = (
            f"unreliable, and not comparable with published figures: the covariance of {width} features over "
            f"{gathered.pictures} pictures has a rank of at most {gathered.pictures - 1}"
        )
    if reference.features is None:
        left_out |= dict.fromkeys(("precision", "recall"), "the reference has neither features nor pictures")
    elif min(len(reference.features), gathered.pictures) <= 3:
        left_out |= dict.fromkeys(("precision", "recall"), "they need four pictures at least on both sides")
    else:
        found["precision"], found["recall"] = precision_recall(reference.features, gathered.features)
        protocol["precision"] = f"and recall: third neighbour, {len(reference.features)} real pictures"
    return found


def _cosines(clip: Matcher, rgb: Tensor, captions: Sequence[str]) -> Tensor:
    with torch.no_grad():
        return (clip.image_features(pixels_for(clip, rgb)) * clip.text_features(captions)).sum(-1).float().cpu()


def _batches(pictures: Iterable[PictureWithCaption], size: int) -> Iterator[list[PictureWithCaption]]:
    waiting: list[PictureWithCaption] = []
    for picture in pictures:
        if waiting and picture.rgb.shape != waiting[0].rgb.shape:
            shapes = f"{tuple(waiting[0].rgb.shape[1:])} and {tuple(picture.rgb.shape[1:])}"
            raise ValueError(f"got pictures of {shapes}; resize them to one size")
        waiting.append(picture)
        if len(waiting) == size:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _all_square(pictures: Iterable[PictureWithCaption], unreadable: Sequence[str]) -> Iterator[PictureWithCaption]:
    """Yield pictures; ValueError as soon as one is not square or cannot be read, since a pass over all takes hours."""
    for picture in pictures:
        _refuse_unreadable(unreadable)
        height, width = picture.rgb.shape[1:]
        if height != width:
            raise ValueError(f"got pictures of {height} x {width}; wanted squares, as a reference has")
        yield picture
    _refuse_unreadable(unreadable)


def _refuse_unreadable(unreadable: Sequence[str]) -> None:
    if unreadable:
        raise ValueError(f"{unreadable[0]}; a reference needs pictures that can all be read: leave those pictures out")
