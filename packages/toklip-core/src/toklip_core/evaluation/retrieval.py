"""Retrieval: finds the captions of a picture among all captions, and the picture of a caption among all pictures.

R@k from pictures to texts is the share of pictures with one of their captions among the first k. From texts to pictures
it is the share of captions with their picture among the first k.

Source: Karpathy and Li, https://arxiv.org/abs/1412.2306, section 4.2, and the splits that they published.

Shape letters: N pictures, T captions, U distinct texts among them, E joint space.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toklip_core.captioned import CaptionedTable, PictureTable
from toklip_core.config import MAX_PIXELS, Compute
from toklip_core.evaluation.matcher import (
    TIES,
    Matcher,
    cut_protocol,
    hit_chances,
    load_matcher,
    picture_features,
    text_features,
)
from toklip_core.evaluation.report import report_text, software
from toklip_core.files import captions_in, nulls_in, parse_json, read_text, warn_of_nulls
from toklip_core.pictures import Entry, LazyPair, LazyPicture, scene_pairs
from toklip_core.scenes import parse_scenes

RANKS = (1, 5, 10)

# Number of pictures that must be missing before their root counts as wrong.
_LOOKED_FOR = 100


@dataclass(frozen=True, kw_only=True)
class RetrievalReport:
    """Recall in both directions, with the keys R@1, R@5 and R@10, and the protocol of the measurement."""

    image_to_text: dict[str, float]
    text_to_image: dict[str, float]
    #: Recall of a model with equal scores for everything.
    chance_image_to_text: dict[str, float]
    chance_text_to_image: dict[str, float]
    #: Protocol of the measurement.
    protocol: dict[str, str | int]
    #: Pictures that cannot be read, with the reason; no figure includes them or their captions.
    unreadable: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON data."""
        return asdict(self)

    def as_text(self) -> str:
        """Return the report as a table for people."""
        rows = {
            "image to text": self.image_to_text,
            "  chance": self.chance_image_to_text,
            "text to image": self.text_to_image,
            "  chance ": self.chance_text_to_image,
        }
        figures = [["", *self.image_to_text]]
        figures += [[name, *(f"{value:.2%}" for value in row.values())] for name, row in rows.items()]
        return report_text(figures, self.protocol, self.unreadable)


def evaluate_retrieval(
    name: Path | str,
    pairs: Path | str,
    *,
    root: Path | str | None = None,
    image: str = "image",
    captions: str = "captions",
    karpathy_split: str | None = None,
    compute: Compute = Compute(),
) -> RetrievalReport:
    """Measure the retrieval of a model on captioned pictures or scenes, as ``toklip evaluate retrieval`` does.

    Args:
        name: name or folder of a TokLIP or CLIP, see :func:`toklip_core.model.load_model`.
        pairs: JSONL, CSV or TSV file with a picture per row, Karpathy's dataset_coco.json (NAME.json), or scenes, such
            as ``scenes:held-out?count=256``, each with its four captions.
        root: folder that picture paths are relative to; None: that of the file. Scenes have none.
        image: column of a table with the path of the picture.
        captions: column of a table with a list of captions, or with one caption.
        karpathy_split: split of a Karpathy file; None: "test".
        compute: device, number of pictures at a time, and dtype of both towers; a VQ tokenizer stays in float32.

    Raises:
        FileNotFoundError: the file, its pictures, or a file of the model is missing.
        LookupError: the model is unknown, or has no text tower.
        ValueError: the file is malformed, or no picture can be read.
    """
    path, folder = Path(pairs), Path(pairs).parent if root is None else Path(root)
    inputs, karpathy = str(pairs), is_karpathy(pairs)
    if karpathy_split is not None and not karpathy:
        raise ValueError(f"got a Karpathy split for {pairs}; it belongs to a file such as dataset_coco.json")
    if (scenes := parse_scenes(pairs)) is not None:
        found = scene_pairs(scenes)
    elif karpathy:
        found = karpathy_pairs(path, karpathy_split or "test", folder, max_pixels=compute.max_pixels)
        inputs += f", Karpathy's split {karpathy_split or 'test'}"
    else:
        found = table_pairs(path, folder, image=image, captions=captions, max_pixels=compute.max_pixels)
    model, protocol = load_matcher(name, compute, checksums=True)
    report = measure_retrieval(model, found, compute)
    return replace(report, protocol={**protocol, "inputs": inputs, **report.protocol})


def is_karpathy(pairs: Path | str) -> bool:
    """Return whether :func:`evaluate_retrieval` reads a file as one of Karpathy's splits, by its suffix .json."""
    return Path(pairs).suffix.lower() == ".json"


def measure_retrieval(
    model: Matcher, pairs: Sequence[LazyPair], compute: Compute = Compute()
) -> RetrievalReport:
    """Return the recall of a model over captioned pictures; see :func:`evaluate_retrieval`."""
    distinct = list(dict.fromkeys(text for pair in pairs for text in pair.captions))
    texts = text_features(model, distinct, progress=compute.progress).cpu()
    unreadable: list[str] = []
    read: list[int] = []
    features = []
    pictures = [pair.picture for pair in pairs]
    for places, batch in picture_features(model, pictures, unreadable, compute):
        read += places
        features.append(batch.cpu())
    place = {text: i for i, text in enumerate(distinct)}
    captions = [(place[text], i) for i, pair in enumerate(read) for text in pairs[pair].captions]
    text_of, picture_of = torch.tensor(captions).T
    images = torch.cat(features)
    forward, back = recall(images, texts, text_of, picture_of)
    # A model with equal scores for everything.
    chance_forward, chance_back = recall(images[:, :1] * 0, texts[:, :1] * 0, text_of, picture_of)
    return RetrievalReport(
        image_to_text=forward,
        text_to_image=back,
        chance_image_to_text=chance_forward,
        chance_text_to_image=chance_back,
        protocol={
            "pictures": len(read),
            "captions": len(captions),
            **cut_protocol(model, distinct),
            "image to text": "a hit if any caption of the picture is among the first k",
            "text to image": f"a hit if its own picture is among the first k; {_shared(captions)}",
            "ties": TIES,
            "software": software(),
        },
        unreadable=tuple(unreadable),
    )


def recall(
    images: Tensor, texts: Tensor, text_of: Tensor, picture_of: Tensor, *, scores_at_once: int = 2**24
) -> tuple[dict[str, float], dict[str, float]]:
    """Return R@1, R@5 and R@10 from pictures to captions, and from captions to pictures.

    Args:
        images: (N, E), unit norm.
        texts: (U, E), unit norm.
        text_of: (T,), int64, the row in ``texts`` of each caption.
        picture_of: (T,), int64, the row of each caption's picture; every picture has at least one caption.
        scores_at_once: number of scores that are ranked at a time; the default takes 64 MB, and a few times that in
            between.
    """
    forward, back = [], []
    numbers = torch.arange(len(images))
    for rows in torch.split(numbers, max(1, scores_at_once // len(text_of))):
        scores = (images[rows] @ texts.T)[:, text_of]
        forward.append(hit_chances(scores, picture_of == rows[:, None], RANKS))
    for columns in torch.split(torch.arange(len(text_of)), max(1, scores_at_once // len(images))):
        scores = texts[text_of[columns]] @ images.T
        back.append(hit_chances(scores, picture_of[columns, None] == numbers, RANKS))
    first, second = (torch.cat(hits).mean(0).tolist() for hits in (forward, back))
    names = [f"R@{rank}" for rank in RANKS]
    return dict(zip(names, first, strict=True)), dict(zip(names, second, strict=True))


def table_pairs(
    file: Path, root: Path, *, image: str = "image", captions: str = "captions", max_pixels: int = MAX_PIXELS
) -> list[LazyPair]:
    """Return the distinct pictures of a JSONL, CSV or TSV file, with the captions of all rows that name them.

    Rows without a caption are left out.

    Raises:
        FileNotFoundError: the file or its pictures are not there.
        ValueError: it is not such a table, or has no such key.
    """
    table = PictureTable(CaptionedTable(kind="table", table=file, root=root, image=image, caption=captions))
    return [LazyPair(_picture(Path(table.place(i)), max_pixels), table.captions(i)) for i in range(len(table))]


def karpathy_pairs(
    file: Path, split: str, root: Path, *, max_pixels: int = MAX_PIXELS
) -> list[LazyPair]:
    """Return the pictures of a split of Karpathy's dataset_coco.json or dataset_flickr30k.json, all captions of each.

    Raises:
        FileNotFoundError: the file is not there, or the pictures are not below ``root``.
        ValueError: it is not such a file, or has no such split.
    """
    text = read_text(file)
    try:
        rows = parse_json(text, str(file))["images"]
        splits = sorted({row["split"] for row in rows})
        texts: dict[Path, list[str]] = {}
        nulls = 0
        for row in (row for row in rows if row["split"] == split):
            raw = [sentence["raw"] for sentence in row["sentences"]]
            nulls += nulls_in(raw)
            if captions := captions_in(raw, f"'raw' of {row['filename']!r}"):
                texts.setdefault(root / row.get("filepath", "") / row["filename"], []).extend(captions)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} is not a file of Karpathy's splits ({type(error).__name__}: {error}); wanted images, each with "
            "filename, split and sentences"
        ) from error
    found = [LazyPair(_picture(path, max_pixels), captions) for path, captions in texts.items()]
    warn_of_nulls(nulls, str(file))
    if not found:
        raise ValueError(f"{file} has no pictures of the split {split!r}; it has {', '.join(splits) or 'none'}")
    if not any(Path(pair.picture.name).is_file() for pair in found[:_LOOKED_FOR]):
        raise FileNotFoundError(
            f"the pictures of {file} are not below {root}, the first is {found[0].picture.name}; name their root"
        )
    return found


def _picture(path: Path, max_pixels: int) -> LazyPicture:
    return LazyPicture(str(path), Entry(path.name, path, max_pixels=max_pixels).image)


def _shared(captions: Sequence[tuple[int, int]]) -> str:
    """Return a note on captions of several pictures, which even a perfect model cannot tell apart."""
    pictures = Counter(text for text, _ in set(captions))
    several = sum(pictures[text] > 1 for text, _ in captions)
    best = sum(1 / pictures[text] for text, _ in captions) / len(captions)
    return f"{several} captions are those of other pictures too, so R@1 is {best:.2%} at most"
