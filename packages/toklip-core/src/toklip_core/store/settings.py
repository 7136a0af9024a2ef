"""What a token store is to hold: the settings of an encode."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from toklip_core.config import refuse_counts
from toklip_core.model import CLIP, TokLIP
from toklip_core.pictures import Resize


@dataclass(frozen=True, kw_only=True)
class EncodeSettings:
    """What a token store is to hold, and how it is written: all that :func:`encode_pictures` needs beside the pictures.

    A dataclass and no pydantic model, because it may hold models that are loaded.

    Args:
        tokenizer: registered name of the VQ tokenizer; may be left out beside a model, which has its own.
        weights: weights of the tokenizer, see :func:`toklip_core.tokenizer.load_tokenizer`; a model has its own.
        model: a TokLIP, or what :meth:`TokLIP.from_pretrained` takes: the store gets the column ``pooled``, the unit
            feature of each picture. One that is passed is brought to the device and into eval mode; its dtype stays.
        tokens: whether the store also gets the column ``tokens``: all tokens of the model, 0.6 MB for a picture of 256
            tokens.
        teacher: a CLIP, or what :func:`toklip_core.model.load_clip` takes: the store gets the column ``teacher``, its
            unit feature of the picture, at the teacher's own size.
        image_size: side of the encoded square, one that the tokenizer's ``grid`` takes; None: the model's, else what
            the tokenizer was trained at.
        resize: see :func:`toklip_core.pictures.resized`; None: the model's, else the teacher's, else "crop".
        augment: the store also gets the column ``crops``: ids of 20 more views of each picture, see
            :mod:`toklip_core.pictures.ten_crop`.
        shuffle: read files in the order of a hash of their keys, so that a group of rows has pictures of all
            folders; tars, too, though what is in one stays in its order.
        part_rows: a part is written when it has so many pictures.
        part_bytes: largest number of bytes of its rows in memory; with tokens, 10,000 pictures would take 6 GB.
        part_seconds: largest number of seconds between two parts; a kill loses at most this.

    >>> EncodeSettings(tokenizer="vqgan-tiny").part_rows
    10000
    """

    tokenizer: str | None = None
    weights: Path | str | None = None
    model: TokLIP | Path | str | None = None
    tokens: bool = False
    teacher: CLIP | Path | str | None = None
    image_size: int | None = None
    resize: Resize | None = None
    augment: Literal["ten-crop"] | None = None
    shuffle: bool = False
    part_rows: int = 10_000
    part_bytes: int = 2**29
    part_seconds: float = 30

    def __post_init__(self) -> None:
        refuse_counts(part_rows=self.part_rows, part_bytes=self.part_bytes)
