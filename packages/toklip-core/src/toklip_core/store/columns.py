"""Models that compute the rows of a token store: a VQ tokenizer, and on request a TokLIP and a teacher.

    squares of each size -> pixels -tokenizer-> ids -TokLIP-> pooled, tokens
                              `------teacher------------> teacher
    upright crops ------> views -tokenizer-> crops
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toklip_core.config import Dtype
from toklip_core.model import ALIASES, CLIP, TokLIP, TrunkConfig, load_clip
from toklip_core.pictures import all_views, normalized
from toklip_core.store.format import FeatureInfo, StoreInfo, part_schema
from toklip_core.store.reading import SquareBatch, SquareReader
from toklip_core.store.settings import EncodeSettings
from toklip_core.store.tables import EncodedBatch, row_table
from toklip_core.tokenizer import Tokenizer, load_tokenizer
from toklip_core.weights import weights_checksum


class RowMaker:
    """The models of a store.

    Args:
        info: metadata of the store.
        tokenizer: tokenizer for the ids.
        model: TokLIP for pooled vectors, and for tokens if ``info`` has them.
        teacher: CLIP for the teacher's vectors.
    """

    def __init__(self, info: StoreInfo, tokenizer: Tokenizer, model: TokLIP | None, teacher: CLIP | None) -> None:
        self.info = info
        self._tokenizer, self._model, self._teacher = tokenizer, model, teacher
        self._device = torch.device("cpu")

    def reader(self, batch_size: int) -> SquareReader:
        """Return what is read of each picture: squares of the tokenizer's side, and of the teacher's if it differs."""
        sizes = [self.info.image_size]
        if self._teacher is not None and self._teacher.config.image_size != self.info.image_size:
            sizes.append(self._teacher.config.image_size)
        return SquareReader(tuple(sizes), self.info.augment is not None, self.info.resize, batch_size)

    def to(self, device: torch.device | str) -> None:
        """Move the models to a device, and cast the tokenizer to the precision of the store."""
        self._device = torch.device(device)
        self._tokenizer.to(device, getattr(torch, self.info.dtype))
        for module in (self._model, self._teacher):
            if module is not None:
                module.to(device).eval()

    @torch.no_grad()
    def encoded(self, batch: SquareBatch) -> EncodedBatch:
        """Return the rows of a batch of squares, which its reader has read."""
        table = part_schema(self.info).empty_table()
        if batch.keys:
            ids, features, crops = self._columns(batch.squares, batch.crops)
            table = row_table(self.info, batch.keys, ids, batch.captions, features, crops)
        return EncodedBatch(table, batch.unreadable, batch.skipped)

    def _columns(
        self, squares: Sequence[np.ndarray[Any, Any]], crops: np.ndarray[Any, Any] | None
    ) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        """Return ids (B, h, w, Q), the features of each column, and (B, VIEWS, h, w, Q) if the store has crops."""
        pixels = [self._pixels(square) for square in squares]
        ids = self._ids(pixels[0])
        features: dict[str, Tensor] = {}
        with self._precision():
            if self._model is not None:
                encoded = self._model.encode_ids(ids)
                features["pooled"] = F.normalize(encoded.pooled.float(), dim=-1)
                if self.info.tokens is not None:
                    features["tokens"] = encoded.tokens
            if self._teacher is not None:
                features["teacher"] = self._teacher.image_features(pixels[-1])
        views = None
        if crops is not None:
            # The usual batch size, because all 20 views of each picture at once would need 20 times the memory.
            flat = all_views(torch.from_numpy(crops).movedim(-1, 2)).flatten(0, 1).movedim(1, -1).numpy()
            chunks = [self._pixels(flat[start : start + len(ids)]) for start in range(0, len(flat), len(ids))]
            views = torch.cat([self._ids(chunk) for chunk in chunks])
            views = views.reshape(len(ids), -1, *views.shape[1:])
        return ids, features, views

    def _ids(self, pixels: Tensor) -> Tensor:
        """Return ids (B, h, w, Q); ValueError unless they have the grid and the codebooks that the tokenizer states."""
        ids = self._tokenizer.encode(pixels)
        if ids.shape[1:3] != self.info.grid:
            wanted, name = self.info.grid, self.info.tokenizer.name
            made = tuple(ids.shape[1:3])
            raise ValueError(f"{name!r} made ids of the grid {made}, but its grid() says {wanted}; fix its plugin")
        self._tokenizer.embedding.refuse_ids(ids)
        return ids

    def _pixels(self, squares: np.ndarray[Any, Any]) -> Tensor:
        rgb = torch.from_numpy(squares).to(self._device).permute(0, 3, 1, 2)
        return normalized(rgb).contiguous()

    def _precision(self) -> AbstractContextManager[Any]:
        """Return autocast to the precision of the store, so that the caller's models keep their weights."""
        half = self.info.dtype == "bfloat16"
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=half)


def row_maker(settings: EncodeSettings, *, dtype: Dtype = "float32") -> RowMaker:
    """Load the models of a store.

    Raises:
        FileNotFoundError: weights are missing.
        LookupError: no tokenizer or model has the name.
        ValueError: the settings do not fit one another.
    """
    model, teacher = settings.model, settings.teacher
    toklip = TokLIP.from_pretrained(model, text=False, dtype=torch.float32) if isinstance(model, str | Path) else model
    if settings.tokens and toklip is None:
        raise ValueError("tokens are those of a model; name one (--model)")
    if toklip is None:
        if settings.tokenizer is None:
            raise ValueError("got neither a tokenizer nor a model; name one of them (--tokenizer, --model)")
        image_size, resize = settings.image_size, settings.resize
        vq = load_tokenizer(settings.tokenizer, settings.weights, image_size=image_size)
    else:
        vq = _of_model(toklip, settings)
        if toklip is model:  # the caller's own, whose weights must not be rounded
            vq = vq.in_dtype(getattr(torch, dtype))
        image_size, resize = toklip.config.image_size, toklip.config.resize
    clip = load_clip(teacher).float() if isinstance(teacher, str | Path) else teacher
    size = vq.image_size if image_size is None else image_size
    info = StoreInfo(
        # What the store does not hold, it does not name.
        tokenizer=vq.record.model_copy(update={"file": None}),
        codebook_sizes=vq.codebook_sizes,
        grid=vq.grid(size, size),
        image_size=size,
        # The teacher sees what the ids show.
        resize=resize or (clip.config.resize if clip is not None else "crop"),
        dtype=dtype,
        augment=settings.augment,
    )
    if toklip is not None:
        trunk, checksum = toklip.config.encoder.trunk, weights_checksum(toklip.encoder)
        pooled = FeatureInfo(model=_name(model), weights_checksum=checksum, width=_joint_width(trunk))
        info = info.model_copy(update={"pooled": pooled})
        if settings.tokens:
            of_tokens = {"width": trunk.width, "count": math.prod(toklip.config.encoder.grid)}
            info = info.model_copy(update={"tokens": pooled.model_copy(update=of_tokens)})
    if clip is not None:
        width = _joint_width(clip.config.vision.trunk)
        of_teacher = FeatureInfo(model=_name(teacher), weights_checksum=weights_checksum(clip), width=width)
        info = info.model_copy(update={"teacher": of_teacher})
    return RowMaker(info, vq, toklip, clip)


def _of_model(model: TokLIP, settings: EncodeSettings) -> Tokenizer:
    """Return the model's tokenizer; ValueError if something else than the model's own was asked for."""
    config = model.config
    own = {"tokenizer": config.tokenizer.name, "size": config.image_size, "resize": config.resize, "weights": None}
    asked = {
        "tokenizer": settings.tokenizer,
        "size": settings.image_size,
        "resize": settings.resize,
        "weights": settings.weights,
    }
    for name, value in asked.items():
        if value not in (None, own[name]):
            has = f"{own[name]!r}" if own[name] else "those of its tokenizer"
            raise ValueError(f"got the {name} {str(value)!r}, but the model has {has}; leave out --{name}")
    return model.tokenizer


def _name(model: nn.Module | Path | str | None) -> str:
    """Return the name of a model in a store: of a path the last part, because the rest differs between machines."""
    if isinstance(model, str | Path):
        name = ALIASES.get(str(model), str(model))
        return Path(name).resolve().name if Path(name).exists() else name
    return type(model).__name__


def _joint_width(trunk: TrunkConfig) -> int:
    return trunk.output_dim or trunk.width
